// What the tests of the report ask of a page; evaluated in it, not part of it.

const all = selector => [...document.querySelectorAll(selector)];
const outside = () => all("body *:not(svg *)"); // of figures
const text = element => element.outerHTML.slice(0, 80);

/** What assistive technology calls an element. */
function named(element) {
  const of = id => (document.getElementById(id) || {}).textContent || "";
  const by = (element.getAttribute("aria-labelledby") || "").split(" ").map(of).join(" ");
  return (element.getAttribute("aria-label") || by).trim();
}

/** Sizes in pixels and colours of every figure. */
function figures() {
  const scale = matrix => Math.hypot(matrix.a, matrix.b);
  return all("figure svg").map(svg => {
    const box = svg.getBoundingClientRect(), words = [...svg.querySelectorAll("text")];
    const letters = words.map(t => parseFloat(getComputedStyle(t).fontSize) * scale(t.getScreenCTM()));
    const marks = "g[id*=line2d] path, g[id*=line2d] use, g[id*=LineCollection] path";
    const styles = [...svg.querySelectorAll(marks)].map(mark => getComputedStyle(mark));
    const strokes = styles.filter(s => s.strokeOpacity == 1).map(s => s.stroke); // the grid is lighter
    return {
      section: svg.closest("section").id, width: box.width, height: box.height, words: words.length,
      letters: Math.min(...letters), ink: getComputedStyle(words[0]).fill,
      ground: getComputedStyle(svg.closest("figure")).backgroundColor,
      lines: [...new Set(strokes.filter(color => color.startsWith("rgb")))],
    };
  });
}

/** Pairs of a colour of text and the ground below it, outside of figures. */
function words() {
  function ground(element) {
    const color = getComputedStyle(element).backgroundColor;
    return color != "rgba(0, 0, 0, 0)" || !element.parentElement ? color : ground(element.parentElement);
  }
  const speaks = e => [...e.childNodes].some(n => n.nodeType == Node.TEXT_NODE && n.textContent.trim());
  const pairs = outside().filter(speaks).map(e => getComputedStyle(e).color + "|" + ground(e));
  return [...new Set(pairs)].map(pair => pair.split("|"));
}

/** What a keyboard or a screen reader would stumble over, by kind. */
function obstacles() {
  const ids = all("[id]").map(e => e.id), levels = all("h1, h2, h3, h4, h5, h6").map(h => +h.tagName[1]);
  const cut = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const scrolls = e => e.scrollWidth > e.clientWidth + 1 && cut(e);
  const moves = s => s.transitionDuration != "0s" || s.animationName != "none";
  const scope = th => ["row", "col"].includes(th.scope) && th.textContent.trim();
  const found = {
    "names given twice": ids.filter((id, i) => ids.indexOf(id) < i),
    "levels of headings that are skipped": levels.filter((level, i) => level > (levels[i - 1] || 0) + 1),
    "not there once": ["html[lang=en]", "header", "nav", "main", "h1"].filter(w => all(w).length != 1),
    "boxes that scroll, but not by keyboard": outside().filter(e => scrolls(e) && (e.tabIndex || !named(e))),
    "stops out of order": all("[tabindex]").filter(e => e.tabIndex > 0),
    "without a name": all("section, figure, figure svg, nav").filter(e => !named(e)),
    "drawings that are no pictures": all("svg:not([role=img])"),
    "tables without a caption": all("table").filter(t => !(t.caption && t.caption.textContent.trim())),
    "heads of cells without a scope or a name": all("th").filter(th => !scope(th)),
    "links that lead nowhere": all("a").filter(a => !document.querySelector(a.getAttribute("href"))),
    "what moves": outside().filter(e => moves(getComputedStyle(e))),
    "scripts": all("script"),
  };
  const told = item => (item instanceof Element ? text(item) : item);
  const some = Object.entries(found).filter(([, list]) => list.length);
  return Object.fromEntries(some.map(([kind, list]) => [kind, list.map(told)]));
}

/** Where the focus is, and how that shows. */
function focus() {
  const element = document.activeElement, style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    name: element.className || element.tagName, href: element.getAttribute("href"),
    outline: style.outlineStyle == "solid" ? parseFloat(style.outlineWidth) : 0,
    seen: box.left >= 0 && box.top >= 0 && box.bottom <= innerHeight,
  };
}

Object.assign(window, { figures, words, obstacles, focus });
