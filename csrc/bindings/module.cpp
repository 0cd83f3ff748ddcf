// flashlla._C: raw pointers in, nothing of torch. The caller (flashlla/ops/cpu.py) allocates and validates.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "../cpu/runtime.h"

namespace py = pybind11;
using namespace flashlla;

namespace {

using Strides = std::array<int64_t, 3>;
using Operand = std::tuple<uintptr_t, Strides, int>;  // data, (batch, row, head) strides, dtype
using RowOperand = std::tuple<uintptr_t, Strides>;
using BlockTable = std::array<int64_t, 3>;  // data, row stride, page size

Array array(const Operand& operand) {
  const auto& [data, strides, dtype] = operand;
  return {reinterpret_cast<const void*>(data), strides[0], strides[1], strides[2], static_cast<DType>(dtype)};
}

PerRow per_row(const RowOperand& operand) {
  const auto& [data, strides] = operand;
  return {reinterpret_cast<const float*>(data), strides[0], strides[1], strides[2]};
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Problem problem(const Operand& q, const Operand& k, const Operand& v, const std::optional<Operand>& probe,
                const std::optional<RowOperand>& ridge, const RowOperand& gate, std::array<int, 4> sizes,
                uintptr_t sequences, int64_t n_sequences, float scale, bool causal, int64_t window, int solver,
                float rtol, int max_iters, bool stats, const std::optional<BlockTable>& block_table) {
  Problem p;
  p.q = array(q);
  p.k = array(k);
  p.v = array(v);
  if (probe) p.probe = array(*probe);
  if (ridge) p.ridge = per_row(*ridge);
  p.gate = per_row(gate);
  p.heads = sizes[0];
  p.kv_heads = sizes[1];
  p.dim = sizes[2];
  p.value_dim = sizes[3];
  p.sequences = pointer<const Sequence>(sequences);
  p.n_sequences = n_sequences;
  p.scale = scale;
  p.causal = causal;
  p.window = window;
  p.solver = static_cast<Solver>(solver);
  p.rtol = rtol;
  p.max_iters = max_iters;
  p.stats = stats;
  if (block_table) {
    p.block_table = pointer<const int64_t>(uintptr_t((*block_table)[0]));
    p.table_stride = (*block_table)[1];
    p.page_size = (*block_table)[2];
  }
  return p;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  static_assert(sizeof(Sequence) == 6 * sizeof(int64_t), "sequences come as rows of six int64");
  m.doc() = "Compiled CPU kernels of flashlla; use them through flashlla.functional.";

  py::class_<Problem>(m, "Problem").def(py::init(&problem));
  m.def("available_instruction_sets", &available_kernels);
  m.def("instruction_set", [](const std::string& name) { return std::string(select_kernels(name).name); });

  const auto define_forward = [&m](const char* name, auto run) {
    m.def(name, [run](const std::string& isa, const Problem& p, uintptr_t o, uintptr_t lse, uintptr_t kbar, uintptr_t g,
                      uintptr_t residual, uintptr_t iterations, int64_t q_rows, int threads) {
      const ForwardOut out{pointer<void>(o),
                           pointer<float>(lse),
                           pointer<float>(kbar),
                           pointer<float>(g),
                           pointer<float>(residual),
                           pointer<int32_t>(iterations),
                           q_rows};
      const py::gil_scoped_release release;
      run(select_kernels(isa), p, out, threads);
    });
  };
  define_forward("forward", &forward);
  define_forward("decode", &decode);
  m.def("backward", [](const std::string& isa, const Problem& p, const Operand& d_o, uintptr_t kbar, uintptr_t g,
                       uintptr_t dq, uintptr_t dk, uintptr_t dv, uintptr_t dprobe, uintptr_t dridge, uintptr_t dgate,
                       int64_t q_rows, int64_t k_rows, int threads) {
    BackwardOut out{};
    out.d_o = array(d_o);
    out.kbar = pointer<const float>(kbar);
    out.g = pointer<const float>(g);
    out.dq = pointer<void>(dq);
    out.dk = pointer<void>(dk);
    out.dv = pointer<void>(dv);
    out.dprobe = pointer<void>(dprobe);
    out.dridge = pointer<float>(dridge);
    out.dgate = pointer<float>(dgate);
    out.q_rows = q_rows;
    out.k_rows = k_rows;
    const py::gil_scoped_release release;
    backward(select_kernels(isa), p, out, threads);
  });
}
