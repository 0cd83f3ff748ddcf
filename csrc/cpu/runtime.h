// Scheduling: cuts a problem into units and tiles, runs them on threads, owns all memory. Results do not depend
// on the number of threads: every tile is computed by one thread, and sums over tiles have a fixed order.
#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace flashlla {

// The best kernels that this machine can run, or those that `name` asks for ("" for the best).
// Throws std::invalid_argument naming the available ones.
const Kernels& select_kernels(const std::string& name);
std::vector<std::string> available_kernels();

void forward(const Kernels&, const Problem&, const ForwardOut&, int threads);
void backward(const Kernels&, const Problem&, const BackwardOut&, int threads);
// As forward, for a few query rows a sequence; out.residual is 0.
void decode(const Kernels&, const Problem&, const ForwardOut&, int threads);

}  // namespace flashlla
