// Runs forward and backward with the launchers of csrc/cuda alone, on buffers of exact size, to be
// compiled with AddressSanitizer and UBSan: an index that is off by one is caught at the byte.
// GEMMs are replaced by random numbers. What a kernel promises to write starts as NaN and must end
// as a number.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/cuda/recurrence.h"
#include "../../csrc/cuda/segment_sum.h"

namespace {

using namespace captioner::cuda;

std::mt19937 generator(7);

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

void expect_success(cudaError_t error) {
  if (error != cudaSuccess) fail("a launch was refused");
}

// `shift` elements in front make the rest start where no vector may.
template <typename T>
class Buffer {
 public:
  Buffer(int64_t count, int64_t shift)
      : count_(count), shift_(shift), memory_(new T[count + shift]) {
    std::memset(static_cast<void*>(memory_), 0xff, (count + shift) * sizeof(T));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { delete[] memory_; }
  T* data(int64_t first = 0) { return memory_ + shift_ + first; }
  Buffer& draw() {
    std::uniform_real_distribution<float> distribution(-1.0f, 1.0f);
    for (int64_t k = 0; k < count_; ++k) data()[k] = static_cast<T>(distribution(generator));
    return *this;
  }
  void expect_written(const char* name) {
    for (int64_t k = 0; k < count_; ++k) {
      if (!std::isfinite(static_cast<double>(data()[k]))) fail(name);
    }
  }

 private:
  int64_t count_, shift_;
  T* memory_;
};

struct Layout {
  std::vector<int64_t> batch_sizes;
  int64_t hidden, shift;
  bool input_rows;
  int64_t models;
};

template <typename Scalar>
void recurrence(const Layout& layout) {
  using S = acc_t<Scalar>;
  const auto& sizes = layout.batch_sizes;
  const int64_t B = sizes[0], H = layout.hidden, shift = layout.shift, K = layout.models;
  const int64_t N = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  const int64_t T = static_cast<int64_t>(sizes.size()), U = layout.input_rows ? 3 : N;
  Buffer<Scalar> input_projection(K * U * 4 * H, shift), bias_ih(K * 4 * H, shift),
      bias_hh(K * 4 * H, shift);
  Buffer<Scalar> hx(K * B * H, shift), output(K * N * H, shift), hy(K * B * H, shift),
      cy(K * B * H, shift);
  Buffer<S> cx(K * B * H, shift), workspace(K * N * 5 * H, shift);
  const auto cells = [&](int64_t row) { return workspace.data((4 * N + row) * H); };
  const auto strides = [&](int64_t t) { return ModelStrides{N, B, U, t ? 5 * N : B, t ? N : B}; };
  Buffer<int64_t> rows(N, 0);
  for (int64_t n = 0; n < N; ++n) rows.data()[n] = n % 3;
  for (auto* drawn : {&input_projection, &bias_ih, &bias_hh, &hx}) drawn->draw();
  cx.draw();

  int64_t first = 0;
  for (int64_t t = 0; t < T; first += sizes[t++]) {
    const int64_t before = t ? first - sizes[t - 1] : 0;
    Buffer<Scalar> hidden_projection(((K - 1) * B + sizes[t]) * 4 * H, shift);
    hidden_projection.draw();
    ForwardStep<Scalar> step{};
    step.models = K;
    step.stride = strides(t);
    step.sequences = sizes[t];
    step.continuing = t + 1 < T ? sizes[t + 1] : 0;
    step.hidden_size = H;
    step.projection_rows = layout.input_rows ? U : sizes[t];
    step.input_projection = input_projection.data(layout.input_rows ? 0 : first * 4 * H);
    step.input_rows = layout.input_rows ? rows.data(first) : nullptr;
    step.hidden_projection = hidden_projection.data();
    step.bias_ih = bias_ih.data();
    step.bias_hh = bias_hh.data();
    step.c_before = t ? cells(before) : cx.data();
    step.gates = workspace.data(first * 4 * H);
    step.cells = cells(first);
    step.output = output.data(first * H);
    step.hy = hy.data();
    step.cy = cy.data();
    expect_success(launch_forward(step, nullptr));
  }
  output.expect_written("output");
  hy.expect_written("hy");
  cy.expect_written("cy");
  workspace.expect_written("gates and cells");

  Buffer<Scalar> grad_output(K * N * H, shift), grad_hy(K * B * H, shift),
      grad_cy(K * B * H, shift);
  Buffer<Scalar> grad_gates(K * N * 4 * H, shift), h_before(K * N * H, shift),
      grad_cx(K * B * H, shift);
  Buffer<S> grad_cell(K * B * H, shift);
  for (auto* drawn : {&grad_output, &grad_hy, &grad_cy}) drawn->draw();
  for (int64_t t = T - 1; t >= 0; --t) {
    first -= sizes[t];
    const int64_t before = t ? first - sizes[t - 1] : 0, continuing = t + 1 < T ? sizes[t + 1] : 0;
    Buffer<Scalar> grad_hidden(((K - 1) * B + continuing) * H, shift);
    grad_hidden.draw();
    BackwardStep<Scalar> step{};
    step.models = K;
    step.stride = strides(t);
    step.sequences = sizes[t];
    step.continuing = continuing;
    step.hidden_size = H;
    step.grad_output = grad_output.data(first * H);
    step.grad_hidden = grad_hidden.data();
    step.grad_hy = grad_hy.data();
    step.grad_cy = grad_cy.data();
    step.gates = workspace.data(first * 4 * H);
    step.cells = cells(first);
    step.c_before = t ? cells(before) : cx.data();
    step.hidden_before = t ? output.data(before * H) : hx.data();
    step.grad_cell = grad_cell.data();
    step.grad_cx = t ? nullptr : grad_cx.data();
    step.grad_gates = grad_gates.data(first * 4 * H);
    step.h_before = h_before.data(first * H);
    expect_success(launch_backward(step, nullptr));
  }
  grad_cx.expect_written("grad_cx");
  grad_gates.expect_written("grad_gates");
  h_before.expect_written("h_before");
}

template <typename Scalar>
void sums(int64_t rows, int64_t segments, int64_t columns, int64_t models = 1) {
  Buffer<Scalar> values(models * rows * columns, 0), found(models * segments * columns, 0);
  values.draw();
  // Two segments of three stay empty, the first is long.
  std::vector<int64_t> owner(rows);
  for (int64_t n = 0; n < rows; ++n) owner[n] = n % 4 ? 0 : n / 4 * 3 % segments;
  Buffer<int64_t> order(rows, 0), sorted(rows, 0), starts(segments + 1, 0);
  std::iota(order.data(), order.data() + rows, int64_t{0});
  std::stable_sort(order.data(), order.data() + rows,
                   [&](int64_t a, int64_t b) { return owner[a] < owner[b]; });
  for (int64_t n = 0; n < rows; ++n) sorted.data()[n] = owner[order.data()[n]];
  expect_success(launch_segment_starts(sorted.data(), rows, segments, starts.data(), nullptr));
  const SegmentSums<Scalar> params{models,        rows,         segments,      columns,
                                   values.data(), order.data(), starts.data(), found.data()};
  expect_success(launch_segment_sums(params, nullptr));
  for (int64_t segment = 0; segment < models * segments; ++segment) {
    const int64_t u = segment % segments, before = segment / segments * rows;
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0, size = 0;
      for (int64_t n = 0; n < rows; ++n) {
        const double value = static_cast<double>(values.data()[(before + n) * columns + column]);
        if (owner[n] == u) sum += value, size += std::fabs(value);
      }
      // The result rounds to Scalar: one part in 2^8 at worst.
      const double error = static_cast<double>(found.data()[segment * columns + column]) - sum;
      if (!(std::fabs(error) <= (size + 1e-6) / 128)) fail("a segment's sum");
    }
  }
}

template <typename Scalar>
void everything() {
  const std::vector<std::vector<int64_t>> layouts{{4, 4, 2, 1, 1}, {3, 3}, {5}, {1}, {2, 1, 1, 1}};
  for (const auto& batch_sizes : layouts) {
    for (const int64_t hidden : {1, 5, 8, 33}) {
      for (const int64_t shift : {0, 1}) {
        recurrence<Scalar>({batch_sizes, hidden, shift, false, 1});
        recurrence<Scalar>({batch_sizes, hidden, shift, true, 1});
      }
    }
  }
  for (const bool input_rows : {false, true}) {
    recurrence<Scalar>({{4, 4, 2, 1}, 5, 0, input_rows, 3});
    recurrence<Scalar>({{3, 1}, 32, 0, input_rows, 3});
  }
  recurrence<Scalar>({{2, 1}, 1100, 0, false, 1});  // more than a block's share of units
  recurrence<Scalar>({{1}, 300, 1, false, 1});
  sums<Scalar>(1, 1, 4);
  sums<Scalar>(41, 300, 20);
  sums<Scalar>(70, 3, 132);
  sums<Scalar>(41, 30, 20, 3);
}

}  // namespace

int main() {
  everything<double>();
  everything<float>();
  everything<c10::BFloat16>();
  everything<c10::Half>();
  std::puts("all buffers kept to");
}
