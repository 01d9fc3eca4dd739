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
};

template <typename Scalar>
void recurrence(const Layout& layout) {
  using S = acc_t<Scalar>;
  const auto& sizes = layout.batch_sizes;
  const int64_t B = sizes[0], H = layout.hidden, shift = layout.shift,
                U = layout.input_rows ? 3 : 0;
  const int64_t N = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  const int64_t T = static_cast<int64_t>(sizes.size());
  Buffer<Scalar> input_projection((U ? U : N) * 4 * H, shift), bias_ih(4 * H, shift),
      bias_hh(4 * H, shift);
  Buffer<Scalar> hx(B * H, shift), output(N * H, shift), hy(B * H, shift), cy(B * H, shift);
  Buffer<S> cx(B * H, shift), gates(N * 4 * H, shift), cells(N * H, shift);
  Buffer<int64_t> rows(N, 0);
  for (int64_t n = 0; n < N; ++n) rows.data()[n] = n % 3;
  for (auto* drawn : {&input_projection, &bias_ih, &bias_hh, &hx}) drawn->draw();
  cx.draw();

  int64_t first = 0;
  for (int64_t t = 0; t < T; first += sizes[t++]) {
    const int64_t before = t ? first - sizes[t - 1] : 0;
    Buffer<Scalar> hidden_projection(sizes[t] * 4 * H, shift);
    hidden_projection.draw();
    ForwardStep<Scalar> step{};
    step.sequences = sizes[t];
    step.continuing = t + 1 < T ? sizes[t + 1] : 0;
    step.hidden_size = H;
    step.projection_rows = U ? U : sizes[t];
    step.input_projection = input_projection.data(U ? 0 : first * 4 * H);
    step.input_rows = U ? rows.data(first) : nullptr;
    step.hidden_projection = hidden_projection.data();
    step.bias_ih = bias_ih.data();
    step.bias_hh = bias_hh.data();
    step.c_before = t ? cells.data(before * H) : cx.data();
    step.gates = gates.data(first * 4 * H);
    step.cells = cells.data(first * H);
    step.output = output.data(first * H);
    step.hy = hy.data();
    step.cy = cy.data();
    expect_success(launch_forward(step, nullptr));
  }
  output.expect_written("output");
  hy.expect_written("hy");
  cy.expect_written("cy");
  gates.expect_written("gates");
  cells.expect_written("cells");

  Buffer<Scalar> grad_output(N * H, shift), grad_hy(B * H, shift), grad_cy(B * H, shift);
  Buffer<Scalar> grad_gates(N * 4 * H, shift), h_before(N * H, shift), grad_cx(B * H, shift);
  Buffer<S> grad_cell(B * H, shift);
  for (auto* drawn : {&grad_output, &grad_hy, &grad_cy}) drawn->draw();
  for (int64_t t = T - 1; t >= 0; --t) {
    first -= sizes[t];
    const int64_t before = t ? first - sizes[t - 1] : 0, continuing = t + 1 < T ? sizes[t + 1] : 0;
    Buffer<Scalar> grad_hidden(continuing * H, shift);
    grad_hidden.draw();
    BackwardStep<Scalar> step{};
    step.sequences = sizes[t];
    step.continuing = continuing;
    step.hidden_size = H;
    step.grad_output = grad_output.data(first * H);
    step.grad_hidden = grad_hidden.data();
    step.grad_hy = grad_hy.data();
    step.grad_cy = grad_cy.data();
    step.gates = gates.data(first * 4 * H);
    step.cells = cells.data(first * H);
    step.c_before = t ? cells.data(before * H) : cx.data();
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
void sums(int64_t rows, int64_t segments, int64_t columns) {
  Buffer<Scalar> values(rows * columns, 0), found(segments * columns, 0);
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
  expect_success(launch_segment_sums(values.data(), order.data(), starts.data(), segments, columns,
                                     found.data(), nullptr));
  for (int64_t u = 0; u < segments; ++u) {
    for (int64_t column = 0; column < columns; ++column) {
      double sum = 0, size = 0;
      for (int64_t n = 0; n < rows; ++n) {
        const double value = static_cast<double>(values.data()[n * columns + column]);
        if (owner[n] == u) sum += value, size += std::fabs(value);
      }
      // The result rounds to Scalar: one part in 2^8 at worst.
      const double error = static_cast<double>(found.data()[u * columns + column]) - sum;
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
        recurrence<Scalar>({batch_sizes, hidden, shift, false});
        recurrence<Scalar>({batch_sizes, hidden, shift, true});
      }
    }
  }
  recurrence<Scalar>({{2, 1}, 1100, 0, false});  // more than a block's share of units
  recurrence<Scalar>({{1}, 300, 1, false});
  sums<Scalar>(1, 1, 4);
  sums<Scalar>(41, 300, 20);
  sums<Scalar>(70, 3, 132);
}

}  // namespace

int main() {
  everything<double>();
  everything<float>();
  everything<c10::BFloat16>();
  everything<c10::Half>();
  std::puts("all buffers kept to");
}
