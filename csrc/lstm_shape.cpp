#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <string>

#include "gru.h"
#include "lstm.h"
#include "tensors.h"

namespace captioner {
namespace {

std::string text(const std::vector<int64_t>& sizes) {
  std::ostringstream out;
  out << "[";
  for (size_t k = 0; k < sizes.size(); ++k) out << (k ? ", " : "") << sizes[k];
  out << "]";
  return out.str();
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

void expect_shape(const char* name, const std::string& letters, const Tensor& tensor,
                  const std::vector<int64_t>& expected) {
  STD_TORCH_CHECK(shape_of(tensor) == expected, name, " must be ", letters, " = ", text(expected),
                  ", got ", text(shape_of(tensor)));
}

// Of each model: `letters`, such as "[B, H]", and `expected` are without the leading K.
void expect_shape(const LstmShape& shape, const char* name, const std::string& letters,
                  const Tensor& tensor, std::vector<int64_t> expected) {
  expected.insert(expected.begin(), shape.leading.begin(), shape.leading.end());
  const std::string models = shape.leading.empty() ? "[" : "[K, ";
  expect_shape(name, models + letters.substr(1), tensor, expected);
}

void expect_like(const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name,
                  " must be of the type of input");
  STD_TORCH_CHECK(tensor.device() == input.device(), name, " must be on the device of input");
}

void read_batch_sizes(const Tensor& batch_sizes, LstmShape& shape) {
  STD_TORCH_CHECK(batch_sizes.is_cpu(), "batch_sizes must be on the CPU");
  STD_TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.numel() > 0 &&
                      batch_sizes.scalar_type() == torch::headeronly::ScalarType::Long,
                  "batch_sizes must be [T] of int64 with T >= 1, got ",
                  text(shape_of(batch_sizes)));
  const auto* sizes = static_cast<const int64_t*>(batch_sizes.data_ptr());
  shape.steps = batch_sizes.numel();
  shape.offsets.push_back(0);
  for (int64_t t = 0; t < shape.steps; ++t) {
    shape.batch_sizes.push_back(sizes[t * batch_sizes.stride(0)]);
    shape.offsets.push_back(shape.offsets.back() + shape.batch_sizes.back());
  }
  for (int64_t t = 0; t < shape.steps; ++t) {
    STD_TORCH_CHECK(
        shape.batch_sizes[t] > 0 && (t == 0 || shape.batch_sizes[t] <= shape.batch_sizes[t - 1]),
        "batch_sizes must be positive and never increase, got ", text(shape.batch_sizes));
  }
  shape.batch = shape.batch_sizes.front();
}

// Checks all arguments, once T, B and the sizes of the steps are known.
void check_shape(LstmShape& shape, const Tensor& input, const Tensor& hx, const Tensor& cx,
                 const Tensor& weight_ih, const Tensor& weight_hh,
                 const std::optional<Tensor>& input_rows) {
  expect_shape(shape, "hx", "[B, H]", hx, {shape.batch, shape.hidden_size});
  expect_shape(shape, "cx", "[B, H]", cx, {shape.batch, shape.hidden_size});
  expect_shape(shape, "weight_ih", "[4H, E]", weight_ih, {4 * shape.hidden_size, shape.input_size});
  expect_like("hx", hx, input);
  expect_like("cx", cx, input);
  expect_like("weight_ih", weight_ih, input);
  expect_like("weight_hh", weight_hh, input);
  if (input_rows) {
    expect_shape("input_rows", "[N]", *input_rows, {shape.tokens});
    STD_TORCH_CHECK(input_rows->scalar_type() == torch::headeronly::ScalarType::Long,
                    "input_rows must be of int64");
    STD_TORCH_CHECK(input_rows->device() == input.device(),
                    "input_rows must be on the device of input");
  }
}

// The sizes that the shapes of input and weights give.
LstmShape sizes_of(const Tensor& input, const Tensor& weight_hh,
                   const std::optional<Tensor>& input_rows) {
  LstmShape shape{};
  const std::vector<int64_t> weights = shape_of(weight_hh), inputs = shape_of(input);
  const size_t k = weights.size() == 3 ? 1 : 0;  // dimensions before those of a model
  STD_TORCH_CHECK(weights.size() == k + 2 && weights[k] == 4 * weights[k + 1],
                  "weight_hh must be [4H, H], or [K, 4H, H] of K models, got ", text(weights));
  shape.leading.assign(weights.begin(), weights.begin() + k);
  STD_TORCH_CHECK(shape.models() > 0, "K must be at least 1, got tensors of no model");
  STD_TORCH_CHECK(inputs.size() == k + 2 && (k == 0 || inputs[0] == weights[0]),
                  k == 0 ? "input must be [U, E], got " : "input must be [K, U, E], got ",
                  text(inputs));
  shape.input_rows = inputs[k];
  shape.input_size = inputs[k + 1];
  shape.hidden_size = weights[k + 1];
  shape.tokens = input_rows ? input_rows->numel() : shape.input_rows;
  return shape;
}

}  // namespace

void check_saved(const LstmShape& shape, const Tensor& input, const Tensor& grad_output,
                 const Tensor& grad_hy, const Tensor& grad_cy, const Tensor& output,
                 const Tensor& workspace) {
  const std::vector<int64_t> packed{shape.tokens, shape.hidden_size};
  const std::vector<int64_t> states{shape.batch, shape.hidden_size};
  expect_shape(shape, "grad_output", "[N, H]", grad_output, packed);
  expect_shape(shape, "grad_hy", "[B, H]", grad_hy, states);
  expect_shape(shape, "grad_cy", "[B, H]", grad_cy, states);
  expect_shape(shape, "output", "[N, H]", output, packed);
  expect_shape(shape, "workspace", "[5 * N * H]", workspace,
               {5 * shape.tokens * shape.hidden_size});
  expect_like("grad_output", grad_output, input);
  expect_like("grad_hy", grad_hy, input);
  expect_like("grad_cy", grad_cy, input);
  expect_like("output", output, input);
  STD_TORCH_CHECK(workspace.scalar_type() == acc_type(input.scalar_type()) &&
                      workspace.device() == input.device(),
                  "workspace must be the one that the forward pass returned");
}

LstmShape lstm_shape(const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                     const Tensor& cx, const Tensor& weight_ih, const Tensor& weight_hh,
                     const std::optional<Tensor>& input_rows) {
  LstmShape shape = sizes_of(input, weight_hh, input_rows);
  read_batch_sizes(batch_sizes, shape);
  STD_TORCH_CHECK(shape.offsets.back() == shape.tokens,
                  "batch_sizes must sum to N = ", shape.tokens, ", got ", shape.offsets.back());
  check_shape(shape, input, hx, cx, weight_ih, weight_hh, input_rows);
  return shape;
}

LstmShape capacity_shape(const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                         const Tensor& cx, const Tensor& weight_ih, const Tensor& weight_hh,
                         const std::optional<Tensor>& input_rows) {
  LstmShape shape = sizes_of(input, weight_hh, input_rows);
  STD_TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.numel() > 0 &&
                      batch_sizes.scalar_type() == torch::headeronly::ScalarType::Long,
                  "batch_sizes must be [T] of int64 with T >= 1, got ",
                  text(shape_of(batch_sizes)));
  STD_TORCH_CHECK(batch_sizes.device() == input.device(),
                  "batch_sizes must be on the device of input in the capacity form");
  const int64_t dims = shape.leading.size() + 2;
  STD_TORCH_CHECK(hx.dim() == dims, "hx must be [", shape.leading.empty() ? "" : "K, ",
                  "B, H], got ", text(shape_of(hx)));
  shape.steps = batch_sizes.numel();
  shape.batch = hx.size(dims - 2);
  check_shape(shape, input, hx, cx, weight_ih, weight_hh, input_rows);
  return shape;
}

void check_biases(const LstmShape& shape, const Tensor& input, const Tensor& bias_ih,
                  const Tensor& bias_hh) {
  expect_shape(shape, "bias_ih", "[4H]", bias_ih, {4 * shape.hidden_size});
  expect_shape(shape, "bias_hh", "[4H]", bias_hh, {4 * shape.hidden_size});
  expect_like("bias_ih", bias_ih, input);
  expect_like("bias_hh", bias_hh, input);
}

LstmShape gru_shape(const Tensor& input, const Tensor& batch_sizes, const Tensor& hx,
                    const Tensor& weight_ih, const Tensor& weight_hh,
                    const std::optional<Tensor>& input_rows) {
  STD_TORCH_CHECK(input.dim() == 2, "input must be [U, E], got ", text(shape_of(input)));
  STD_TORCH_CHECK(weight_hh.dim() == 2 && weight_hh.size(0) == 3 * weight_hh.size(1),
                  "weight_hh must be [3H, H], got ", text(shape_of(weight_hh)));
  LstmShape shape{};
  shape.input_rows = input.size(0);
  shape.input_size = input.size(1);
  shape.hidden_size = weight_hh.size(1);
  shape.tokens = input_rows ? input_rows->numel() : shape.input_rows;
  read_batch_sizes(batch_sizes, shape);
  STD_TORCH_CHECK(shape.offsets.back() == shape.tokens,
                  "batch_sizes must sum to N = ", shape.tokens, ", got ", shape.offsets.back());
  expect_shape("hx", "[B, H]", hx, {shape.batch, shape.hidden_size});
  expect_shape("weight_ih", "[3H, E]", weight_ih, {3 * shape.hidden_size, shape.input_size});
  expect_like("hx", hx, input);
  expect_like("weight_ih", weight_ih, input);
  expect_like("weight_hh", weight_hh, input);
  if (input_rows) {
    expect_shape("input_rows", "[N]", *input_rows, {shape.tokens});
    STD_TORCH_CHECK(input_rows->scalar_type() == torch::headeronly::ScalarType::Long,
                    "input_rows must be of int64");
  }
  return shape;
}

void check_gru_biases(const LstmShape& shape, const Tensor& input, const Tensor& bias_ih,
                      const Tensor& bias_hh) {
  expect_shape("bias_ih", "[3H]", bias_ih, {3 * shape.hidden_size});
  expect_shape("bias_hh", "[3H]", bias_hh, {3 * shape.hidden_size});
  expect_like("bias_ih", bias_ih, input);
  expect_like("bias_hh", bias_hh, input);
}

void check_gru_saved(const LstmShape& shape, const Tensor& input, const Tensor& grad_output,
                     const Tensor& grad_hy, const Tensor& output, const Tensor& workspace) {
  const std::vector<int64_t> packed{shape.tokens, shape.hidden_size};
  expect_shape("grad_output", "[N, H]", grad_output, packed);
  expect_shape("grad_hy", "[B, H]", grad_hy, {shape.batch, shape.hidden_size});
  expect_shape("output", "[N, H]", output, packed);
  expect_shape("workspace", "[N, 4H]", workspace, {shape.tokens, 4 * shape.hidden_size});
  expect_like("grad_output", grad_output, input);
  expect_like("grad_hy", grad_hy, input);
  expect_like("output", output, input);
  expect_like("workspace", workspace, input);
}

LstmShape step_shape(const Tensor& projection, const Tensor& rows, const Tensor& hx,
                     const Tensor& cx, const Tensor& weight_hh) {
  STD_TORCH_CHECK(weight_hh.dim() == 2 && weight_hh.size(0) == 4 * weight_hh.size(1),
                  "weight_hh must be [4H, H], got ", text(shape_of(weight_hh)));
  STD_TORCH_CHECK(hx.dim() == 2, "hx must be [B, H], got ", text(shape_of(hx)));
  STD_TORCH_CHECK(projection.dim() == 2, "projection must be [U, 4H], got ",
                  text(shape_of(projection)));
  LstmShape shape{};
  shape.tokens = shape.batch = hx.size(0);
  shape.steps = 1;
  shape.input_rows = projection.size(0);
  shape.hidden_size = weight_hh.size(1);
  shape.batch_sizes = {shape.batch};
  shape.offsets = {0, shape.batch};
  expect_shape("projection", "[U, 4H]", projection, {shape.input_rows, 4 * shape.hidden_size});
  expect_shape("rows", "[B]", rows, {shape.batch});
  expect_shape("hx", "[B, H]", hx, {shape.batch, shape.hidden_size});
  expect_shape("cx", "[B, H]", cx, {shape.batch, shape.hidden_size});
  expect_like("projection", projection, hx);
  expect_like("cx", cx, hx);
  expect_like("weight_hh", weight_hh, hx);
  STD_TORCH_CHECK(
      rows.scalar_type() == torch::headeronly::ScalarType::Long && rows.device() == hx.device(),
      "rows must be of int64 and on the device of hx");
  return shape;
}

}  // namespace captioner
