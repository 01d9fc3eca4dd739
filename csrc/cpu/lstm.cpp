// The LSTM over packed sequences on the CPU. The large GEMMs are torch's BLAS; between them the
// recurrence runs in one parallel region, each thread with its own sequences (recurrence.h). Of K
// models, each thread computes whole ones (models.h).
//
// Letters as in ../lstm.h. bfloat16 and float16 run the recurrence in float.
#include "../lstm.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../capacity.h"
#include "../tensors.h"
#include "gemm.h"
#include "kernels.h"
#include "models.h"
#include "ranges.h"
#include "sequences.h"

namespace captioner::cpu {
namespace {

using torch::stable::parallel_for;

// The parts of a workspace: gates [N, 4H] and cells [N, H].
Tensor gates_of(const Tensor& workspace, const LstmShape& shape) {
  const int64_t columns = 4 * shape.hidden_size;
  return torch::stable::view(rows(workspace, 0, shape.tokens * columns), {shape.tokens, columns});
}

Tensor cells_of(const Tensor& workspace, const LstmShape& shape) {
  const int64_t gates = 4 * shape.tokens * shape.hidden_size;
  return rows(workspace, gates, shape.tokens * shape.hidden_size);
}

// Memory of this type for a result: the result's own where that is its type.
Tensor memory_for(const Tensor& result, ScalarType type) {
  const auto sizes = result.sizes();
  if (result.scalar_type() == type) return result;
  return torch::stable::new_empty(result, std::vector<int64_t>(sizes.begin(), sizes.end()), type);
}

// Takes over what was computed in memory_for(result).
void finish(Tensor& result, const Tensor& computed) {
  if (computed.data_ptr() != result.data_ptr()) torch::stable::copy_(result, computed);
}

// The arguments and the results of a model, or with a leading K of all.
struct ForwardTensors {
  Tensor input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh;
  Tensor output, hy, cy, workspace;

  ForwardTensors of_model(int64_t k) const {
    return {part(input, k),     part(hx, k),      part(cx, k),       part(weight_ih, k),
            part(weight_hh, k), part(bias_ih, k), part(bias_hh, k),  part(output, k),
            part(hy, k),        part(cy, k),      part(workspace, k)};
  }
};

template <typename T>
void forward(const LstmShape& shape, ForwardTensors& x, const int64_t* input_rows,
             int64_t threads) {
  const ScalarType scalar = x.input.scalar_type(), state = acc_type(scalar);
  const int64_t hidden = shape.hidden_size;
  Tensor gates = gates_of(x.workspace, shape), cells = cells_of(x.workspace, shape);
  const Tensor output = memory_for(x.output, state);
  const Tensor hy = memory_for(x.hy, state), cy = memory_for(x.cy, state);

  // The input projection is written into the gates' memory if each token has a row of its own.
  const bool in_place = input_rows == nullptr && scalar == state;
  Tensor projection = in_place ? gates : empty(x.input, {shape.input_rows, 4 * hidden});
  fast_gemm<T>(projection, x.input, transposed(x.weight_ih));
  projection = dense(projection, state);

  // A single step reads its weights once: packing them would take longer than the GEMM.
  const bool single = shape.steps == 1;
  const Tensor h0 = dense(x.hx, state), c0 = dense(x.cx, state);
  const T* h_first = unless_zero<T>(h0);
  Tensor weight, recurrent;
  if (!single) weight = packed_gates<T>(dense(x.weight_hh, state), kernels<T>().lstm_gates);
  if (single && h_first) recurrent = dense(gemm(x.hx, transposed(x.weight_hh)), state);

  Tensor bias = copied(x.bias_ih, state);
  const Tensor other_bias = dense(x.bias_hh, state);
  for (int64_t k = 0; k < 4 * hidden; ++k) values<T>(bias)[k] += values<const T>(other_bias)[k];

  const ForwardParams<T> params{steps_of(shape),
                                values<const T>(projection),
                                input_rows,
                                values<const T>(bias),
                                single ? nullptr : values<const T>(weight),
                                single && h_first ? values<const T>(recurrent) : nullptr,
                                h_first,
                                values<const T>(c0),
                                values<T>(output),
                                values<T>(hy),
                                values<T>(cy),
                                values<T>(gates),
                                values<T>(cells)};
  for_each_range(sequence_ranges(shape, threads), [&](int64_t, int64_t first, int64_t last) {
    kernels<T>().forward(params, first, last);
  });
  finish(x.output, output);
  finish(x.hy, hy);
  finish(x.cy, cy);
}

// The arguments and the results of a model, or with a leading K of all.
struct BackwardTensors {
  Tensor grad_output, grad_hy, grad_cy, input, hx, cx, weight_ih, weight_hh, output, workspace;
  Tensor grad_input, grad_hx, grad_cx, grad_weight_ih, grad_weight_hh, grad_bias;

  BackwardTensors of_model(int64_t k) const {
    return {part(grad_output, k),
            part(grad_hy, k),
            part(grad_cy, k),
            part(input, k),
            part(hx, k),
            part(cx, k),
            part(weight_ih, k),
            part(weight_hh, k),
            part(output, k),
            part(workspace, k),
            part(grad_input, k),
            part(grad_hx, k),
            part(grad_cx, k),
            part(grad_weight_ih, k),
            part(grad_weight_hh, k),
            part(grad_bias, k)};
  }
};

struct RecurrentGradients {
  Tensor grad_gates;  // [N, 4H] of the pre-activations
  Tensor h_before;  // [N, H] the hidden state each token's gates read; without its B first rows if
                    // hx is 0
};

// Writes the gradients of hx, cx and of a bias.
template <typename T>
RecurrentGradients recurrent_backward(const LstmShape& shape, BackwardTensors& x, bool wants_hx,
                                      int64_t threads) {
  const ScalarType state = x.workspace.scalar_type();
  const int64_t hidden = shape.hidden_size;
  const std::vector<int64_t> bounds = sequence_ranges(shape, threads);
  const bool single = shape.steps == 1;
  const Tensor h0 = dense(x.hx, state), c0 = dense(x.cx, state), h = dense(x.output, state);
  const Tensor saved = dense(x.workspace), grad = dense(x.grad_output, state);
  const Tensor gates = gates_of(saved, shape), cells = cells_of(saved, shape);
  const T* h_first = unless_zero<T>(h0);
  Tensor weight;
  if (!single) weight = packed<T>(dense(x.weight_hh, state));

  Tensor grad_gates = empty(x.workspace, {shape.tokens, 4 * hidden});
  Tensor h_before = empty(x.workspace, {shape.tokens, hidden});
  Tensor grad_hx = memory_for(x.grad_hx, state), grad_cx = memory_for(x.grad_cx, state);
  torch::stable::copy_(grad_hx, x.grad_hy);
  torch::stable::copy_(grad_cx, x.grad_cy);
  const int64_t ranges = static_cast<int64_t>(bounds.size()) - 1;
  Tensor grad_biases = torch::stable::new_zeros(grad_gates, {ranges, 4 * hidden});
  const BackwardParams<T> params{steps_of(shape),
                                 values<const T>(grad),
                                 values<const T>(gates),
                                 values<const T>(cells),
                                 values<const T>(h),
                                 h_first,
                                 values<const T>(c0),
                                 single ? nullptr : values<const T>(weight),
                                 wants_hx,
                                 values<T>(grad_hx),
                                 values<T>(grad_cx),
                                 values<T>(grad_gates),
                                 values<T>(h_before)};
  for_each_range(bounds, [&](int64_t k, int64_t first, int64_t last) {
    kernels<T>().backward(params, first, last, values<T>(grad_biases) + 4 * hidden * k);
  });
  if (!wants_hx)
    torch::stable::zero_(grad_hx);
  else if (single)
    gemm_into(grad_hx, grad_gates, dense(x.weight_hh, state));
  finish(x.grad_hx, grad_hx);
  finish(x.grad_cx, grad_cx);
  torch::stable::copy_(x.grad_bias, sum_of_rows(grad_biases));
  if (!h_first) h_before = rows(h_before, shape.batch, shape.tokens - shape.batch);
  return {grad_gates, h_before};
}

template <typename T>
void backward(const LstmShape& shape, BackwardTensors& x, const int64_t* input_rows, bool wants_hx,
              int64_t threads) {
  const ScalarType scalar = x.input.scalar_type();
  RecurrentGradients recurrent = recurrent_backward<T>(shape, x, wants_hx, threads);
  Tensor by_token = dense(recurrent.grad_gates, scalar);
  const int64_t read = recurrent.h_before.size(0);
  gemm_into(x.grad_weight_hh, transposed(rows(by_token, shape.tokens - read, read)),
            dense(recurrent.h_before, scalar));
  recurrent.h_before = Tensor();
  const Tensor by_row =
      input_rows ? dense(sum_by_input_row<T>(recurrent.grad_gates, shape, input_rows), scalar)
                 : by_token;
  if (input_rows) by_token = recurrent.grad_gates = Tensor();  // not held while the GEMMs run
  fast_gemm<T>(x.grad_input, by_row, x.weight_ih);
  gemm_into(x.grad_weight_ih, transposed(by_row), x.input);
}

LstmOutputs run_forward(Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                        Tensor weight_hh, Tensor bias_ih, Tensor bias_hh,
                        std::optional<Tensor> input_rows) {
  const Models models(weight_hh, 2);
  models.check({{"input", input},
                {"hx", hx},
                {"cx", cx},
                {"weight_ih", weight_ih},
                {"bias_ih", bias_ih},
                {"bias_hh", bias_hh}});
  const LstmShape shape =
      lstm_shape(models.first(input), batch_sizes, models.first(hx), models.first(cx),
                 models.first(weight_ih), models.first(weight_hh), input_rows);
  check_biases(shape, models.first(input), models.first(bias_ih), models.first(bias_hh));
  if (input_rows) input_rows = dense(*input_rows);
  const int64_t* rows = checked_rows(input_rows, shape);
  const int64_t hidden = shape.hidden_size;
  const ScalarType scalar = input.scalar_type();
  const ForwardTensors all{input,
                           hx,
                           cx,
                           weight_ih,
                           weight_hh,
                           bias_ih,
                           bias_hh,
                           models.empty(input, {shape.tokens, hidden}),
                           models.empty(input, {shape.batch, hidden}),
                           models.empty(input, {shape.batch, hidden}),
                           models.empty(input, {5 * shape.tokens * hidden}, acc_type(scalar))};
  const auto run = scalar == ScalarType::Double ? forward<double> : forward<float>;
  models.for_each(all, [&](ForwardTensors& x, int64_t threads) { run(shape, x, rows, threads); });
  return {all.output, all.hy, all.cy, all.workspace};
}

LstmGradients run_backward(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, Tensor input,
                           Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                           Tensor weight_hh, Tensor output, Tensor workspace,
                           std::optional<Tensor> input_rows, bool wants_hx) {
  const Models models(weight_hh, 2);
  models.check({{"grad_output", grad_output},
                {"grad_hy", grad_hy},
                {"grad_cy", grad_cy},
                {"input", input},
                {"hx", hx},
                {"cx", cx},
                {"weight_ih", weight_ih},
                {"output", output},
                {"workspace", workspace}});
  const LstmShape shape =
      lstm_shape(models.first(input), batch_sizes, models.first(hx), models.first(cx),
                 models.first(weight_ih), models.first(weight_hh), input_rows);
  check_saved(shape, models.first(input), models.first(grad_output), models.first(grad_hy),
              models.first(grad_cy), models.first(output), models.first(workspace));
  if (input_rows) input_rows = dense(*input_rows);
  const int64_t* rows = checked_rows(input_rows, shape);
  const int64_t hidden = shape.hidden_size;
  const BackwardTensors all{grad_output,
                            grad_hy,
                            grad_cy,
                            input,
                            hx,
                            cx,
                            weight_ih,
                            weight_hh,
                            output,
                            workspace,
                            models.empty(input, {shape.input_rows, shape.input_size}),
                            models.empty(input, {shape.batch, hidden}),
                            models.empty(input, {shape.batch, hidden}),
                            models.empty(input, {4 * hidden, shape.input_size}),
                            models.empty(input, {4 * hidden, hidden}),
                            models.empty(input, {4 * hidden})};
  const bool wide = input.scalar_type() == ScalarType::Double;
  const auto run = wide ? backward<double> : backward<float>;
  models.for_each(
      all, [&](BackwardTensors& x, int64_t threads) { run(shape, x, rows, wants_hx, threads); });
  return {all.grad_input,     all.grad_hx,        all.grad_cx,
          all.grad_weight_ih, all.grad_weight_hh, all.grad_bias};
}

void refuse(int64_t algorithm, bool capacity, const Tensor& weight_hh) {
  STD_TORCH_CHECK(!capacity || weight_hh.dim() < 3, "capacity must be false for K models at once");
  STD_TORCH_CHECK(algorithm == 0, "algorithm must be 0 on the CPU, got ", algorithm,
                  ": the persistent LSTM is for tensors on a CUDA device");
}

LstmOutputs lstm_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                        Tensor weight_hh, Tensor bias_ih, Tensor bias_hh,
                        std::optional<Tensor> input_rows, bool capacity, int64_t algorithm) {
  refuse(algorithm, capacity, weight_hh);
  return capacity ? forward_with_capacity(run_forward, input, batch_sizes, hx, cx, weight_ih,
                                          weight_hh, bias_ih, bias_hh, input_rows)
                  : run_forward(input, batch_sizes, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh,
                                input_rows);
}

LstmGradients lstm_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, Tensor input,
                                   Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih,
                                   Tensor weight_hh, Tensor output, Tensor workspace,
                                   std::optional<Tensor> input_rows, bool wants_hx, bool capacity,
                                   int64_t algorithm) {
  refuse(algorithm, capacity, weight_hh);
  return capacity ? backward_with_capacity(run_backward, grad_output, grad_hy, grad_cy, input,
                                           batch_sizes, hx, cx, weight_ih, weight_hh, output,
                                           workspace, input_rows, wants_hx)
                  : run_backward(grad_output, grad_hy, grad_cy, input, batch_sizes, hx, cx,
                                 weight_ih, weight_hh, output, workspace, input_rows, wants_hx);
}

// The arguments and the results of a step of a model, or with a leading K of all.
struct StepTensors {
  Tensor projection, rows, hx, cx, weight_hh;
  Tensor hy, cy;

  StepTensors of_model(int64_t k) const {
    return {part(projection, k), part(rows, k), part(hx, k), part(cx, k),
            part(weight_hh, k),  part(hy, k),   part(cy, k)};
  }
};

template <typename T>
void step(StepTensors& x) {
  const ScalarType state = acc_type(x.hx.scalar_type());
  const int64_t batch = x.hx.size(0), hidden = x.hx.size(1), offsets[] = {0, batch};
  const Tensor recurrent = dense(gemm(x.hx, transposed(x.weight_hh)), state);
  const Tensor from = dense(x.projection, state), c0 = dense(x.cx, state);
  const Tensor scratch = empty(recurrent, {4 * batch, hidden});
  const Tensor cells = empty(scratch, {batch, hidden}), output = empty(cells, {batch, hidden});
  const Tensor hy = memory_for(x.hy, state), cy = memory_for(x.cy, state);
  ForwardParams<T> params{};
  params.steps = {1, hidden, &batch, offsets};
  params.input_projection = values<const T>(from);
  params.input_rows = values<const int64_t>(x.rows);
  params.recurrent_projection = values<const T>(recurrent);
  params.cx = values<const T>(c0);
  params.output = values<T>(output);
  params.hy = values<T>(hy);
  params.cy = values<T>(cy);
  params.gates = values<T>(scratch);
  params.cells = values<T>(cells);
  parallel_for(0, batch, 16,
               [&](int64_t first, int64_t last) { kernels<T>().forward(params, first, last); });
  finish(x.hy, hy);
  finish(x.cy, cy);
}

std::tuple<Tensor, Tensor> lstm_step(Tensor projection, Tensor rows, Tensor hx, Tensor cx,
                                     Tensor weight_hh) {
  const Models models(weight_hh, 2);
  models.check({{"projection", projection}, {"rows", rows}, {"hx", hx}, {"cx", cx}});
  const LstmShape shape = step_shape(models.first(projection), models.first(rows), models.first(hx),
                                     models.first(cx), models.first(weight_hh));
  const StepTensors all{projection,
                        dense(rows),
                        hx,
                        cx,
                        weight_hh,
                        models.empty(hx, {shape.batch, shape.hidden_size}),
                        models.empty(hx, {shape.batch, shape.hidden_size})};
  for (const StepTensors& x : models.each(all)) checked_rows(x.rows, shape);
  const auto run = hx.scalar_type() == ScalarType::Double ? step<double> : step<float>;
  models.for_each(all, [&](StepTensors& x, int64_t) { run(x); });
  return {all.hy, all.cy};
}

STABLE_TORCH_LIBRARY_IMPL(captioner, CPU, library) {
  library.impl("lstm_step", TORCH_BOX(&lstm_step));
  library.impl("lstm_packed", TORCH_BOX(&lstm_packed));
  library.impl("lstm_packed_backward", TORCH_BOX(&lstm_packed_backward));
}

}  // namespace
}  // namespace captioner::cpu
