// The persistent kernels against the formulas of lstm_cell.h in double, on a few layouts:
//     persistent ALGORITHM TYPE HIDDEN SIZE,SIZE,... [TOKENS BATCH [MODELS]]
// with ALGORITHM persistent, cluster or persistent8 (warp groups of eight columns in backward),
// TYPE float, bfloat16 or half; SIZEs are batch_sizes, TOKENS and BATCH the capacities. Prints the
// largest difference, relative to 1 + |expected|, of forward and backward, and a hash of all
// results. And
//     persistent partitions [MODELS]
// prints the work partitions of many sizes.
#include "../../csrc/cuda/persistent.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/lstm_cell.h"

using namespace captioner;
using namespace captioner::cuda;

namespace {

std::mt19937 generator(1);

// Dense, aligned to 16 bytes, exactly as large as it says; NaN until it is written.
template <typename T>
struct Array {
  explicit Array(size_t size) : size(size), at(static_cast<T*>(operator new(size * sizeof(T)))) {
    for (size_t k = 0; k < size; ++k) at[k] = static_cast<T>(NAN);
  }
  Array(size_t size, double scale) : Array(size) {
    std::normal_distribution<double> normal(0, scale);
    for (size_t k = 0; k < size; ++k) at[k] = static_cast<T>(static_cast<float>(normal(generator)));
  }
  Array(const Array&) = delete;
  ~Array() { operator delete(at); }
  double operator[](size_t k) const { return static_cast<float>(at[k]); }
  size_t size;
  T* at;
};

struct Worst {
  double value = 0;
  void compare(double found, double expected) {
    const double difference = std::abs(found - expected) / (1 + std::abs(expected));
    if (!std::isnan(value) && !(difference <= value)) value = difference;  // NaN is kept
  }
};

// FNV-1a of the bytes of arrays, in turn.
struct Fingerprint {
  uint64_t value = 14695981039346656037u;
  template <typename T>
  void add(const Array<T>& array) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(array.at);
    for (size_t k = 0; k < array.size * sizeof(T); ++k) value = (value ^ bytes[k]) * 1099511628211u;
  }
};

struct Layout {
  std::vector<int64_t> sizes;
  size_t tokens, batch;  // the capacities
  Algorithm algorithm;
  size_t models;
  bool eights, untiled;
};

template <typename Scalar>
int check(size_t hidden, const Layout& layout) {
  const std::vector<int64_t>& sizes = layout.sizes;
  const size_t steps = sizes.size(), batch = layout.batch, tokens = layout.tokens;
  const size_t models = layout.models;
  std::vector<size_t> offsets{0};
  for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
  const size_t filled = offsets.back(), present = sizes[0], gates = 4 * hidden;

  const size_t rows = models * tokens, states = models * batch * hidden;
  const Array<Scalar> projection(rows * gates, 1),
      weight(models * gates * hidden, 1 / std::sqrt(hidden)), bias_ih(models * gates, 0.1),
      bias_hh(models * gates, 0.1), hx(states, 0.5), grad_output(rows * hidden, 1),
      grad_hy(states, 1), grad_cy(states, 1);
  const Array<float> cx(states, 0.5);
  Array<Scalar> output(rows * hidden), hy(states), cy(states), grad_gates(rows * gates),
      h_before(rows * hidden), grad_hx(states), grad_cx(states);
  Array<float> workspace(5 * rows * hidden);

  PersistentForward<Scalar> forward{};
  forward.partition = partition_forward<Scalar>(batch, hidden, layout.algorithm, models);
  PersistentBackward<Scalar> backward{};
  backward.partition = partition_backward<Scalar>(batch, hidden, layout.algorithm, models);
  if (layout.untiled) {  // as where H is larger than tiled.h takes
    forward.partition = partition_forward<Scalar>(batch, hidden, Algorithm::cluster, models);
    backward.partition = partition_backward<Scalar>(batch, hidden, Algorithm::cluster, models);
    forward.partition.algorithm = backward.partition.algorithm = Algorithm::persistent;
  }
  if (layout.eights) {  // as where K is too long for warp groups of 16 columns
    WorkPartition& partition = backward.partition;
    partition.warp_group_units = 8;
    partition.units = 8 * partition.warp_groups;
    partition.blocks = static_cast<int>((hidden + partition.units - 1) / partition.units);
  }
  if (forward.partition.groups == 0 || backward.partition.groups == 0)
    return std::puts("does not fit"), 2;
  forward.models = backward.models = static_cast<int>(models);
  forward.steps = backward.steps = steps;
  forward.batch = backward.batch = batch;
  forward.tokens = backward.tokens = tokens;
  forward.hidden_size = backward.hidden_size = hidden;
  forward.batch_sizes = backward.batch_sizes = sizes.data();
  forward.weight_hh = backward.weight_hh = weight.at;
  forward.hx = backward.hx = hx.at;
  forward.cx = backward.cx = cx.at;
  forward.projection_rows = tokens;
  forward.input_projection = projection.at;
  forward.bias_ih = bias_ih.at;
  forward.bias_hh = bias_hh.at;
  forward.hy = hy.at;
  forward.cy = cy.at;
  backward.gates = forward.gates = workspace.at;
  backward.cells = forward.cells = workspace.at + tokens * gates;
  backward.output = forward.output = output.at;
  backward.grad_output = grad_output.at;
  backward.grad_hy = grad_hy.at;
  backward.grad_cy = grad_cy.at;
  backward.grad_gates = grad_gates.at;
  backward.h_before = h_before.at;
  backward.grad_hx = grad_hx.at;
  backward.grad_cx = grad_cx.at;
  std::vector<uint32_t> forward_flags(models * forward.partition.groups * forward.partition.blocks);
  std::vector<uint32_t> backward_flags(models * backward.partition.groups *
                                       backward.partition.blocks);
  forward.flags = forward_flags.data();
  backward.flags = backward_flags.data();
  if (launch_persistent_forward(forward, nullptr) != cudaSuccess ||
      launch_persistent_backward(backward, nullptr) != cudaSuccess) {
    return std::puts("refused"), 2;
  }

  Worst forward_error, backward_error;
  for (size_t model = 0; model < models; ++model) {
    // Where the model begins.
    const size_t n0 = model * tokens, b0 = model * batch, g0 = model * gates;
    const size_t saved0 = 5 * n0 * hidden, cells0 = saved0 + tokens * gates;
    std::vector<double> h(tokens * hidden), c(tokens * hidden), gradients(tokens * gates);
    std::vector<Gates<double>> activated(tokens * hidden);
    const auto before = [&](size_t t, size_t b, size_t unit, const std::vector<double>& packed,
                            const auto& initial) {
      return t ? packed[(offsets[t - 1] + b) * hidden + unit] : initial[(b0 + b) * hidden + unit];
    };
    for (size_t t = 0; t < steps; ++t) {
      const size_t continuing = t + 1 < steps ? sizes[t + 1] : 0, present_rows = sizes[t];
      for (size_t b = 0; b < present_rows; ++b) {
        for (size_t unit = 0; unit < hidden; ++unit) {
          const size_t token = offsets[t] + b, at = token * hidden + unit;
          const auto pre_activation = [&](size_t gate) {
            const size_t row = gate * hidden + unit;
            double total =
                projection[(n0 + token) * gates + row] + bias_ih[g0 + row] + bias_hh[g0 + row];
            for (size_t k = 0; k < hidden; ++k) {
              total += before(t, b, k, h, hx) * weight[(g0 + row) * hidden + k];
            }
            return total;
          };
          activated[at] = activate(Gates<double>{pre_activation(0), pre_activation(1),
                                                 pre_activation(2), pre_activation(3)});
          const auto state = cell_forward(activated[at], before(t, b, unit, c, cx));
          h[at] = state.h;
          c[at] = state.c;
          forward_error.compare(output[n0 * hidden + at], state.h);
          forward_error.compare(workspace[cells0 + at], state.c);
          forward_error.compare(workspace[saved0 + token * gates + 2 * hidden + unit],
                                activated[at].g);
          if (b >= continuing) {
            forward_error.compare(hy[(b0 + b) * hidden + unit], state.h);
            forward_error.compare(cy[(b0 + b) * hidden + unit], state.c);
          }
        }
      }
    }
    for (size_t k = filled * hidden; k < tokens * hidden; ++k) {
      forward_error.compare(output[n0 * hidden + k], 0);
      backward_error.compare(h_before[n0 * hidden + k], 0);
    }
    for (size_t k = (b0 + present) * hidden; k < (b0 + batch) * hidden; ++k) {
      forward_error.compare(hy[k], hx[k]);
      forward_error.compare(cy[k], static_cast<float>(static_cast<Scalar>(cx.at[k])));
      backward_error.compare(grad_hx[k], grad_hy[k]);
      backward_error.compare(grad_cx[k], grad_cy[k]);
    }
    std::vector<double> grad_cell(batch * hidden);
    const auto to_hidden = [&](size_t token, size_t unit) {
      double total = 0;
      for (size_t row = 0; row < gates; ++row) {
        total += gradients[token * gates + row] * weight[(g0 + row) * hidden + unit];
      }
      return total;
    };
    for (size_t t = steps; t-- > 0;) {
      const size_t continuing = t + 1 < steps ? sizes[t + 1] : 0, present_rows = sizes[t];
      for (size_t b = 0; b < present_rows; ++b) {
        for (size_t unit = 0; unit < hidden; ++unit) {
          const size_t token = offsets[t] + b, at = token * hidden + unit;
          const size_t first = b * hidden + unit, at_first = (b0 + b) * hidden + unit;
          const bool continues = b < continuing;
          const double dh = continues ? to_hidden(offsets[t + 1] + b, unit) : grad_hy[at_first];
          const auto found = cell_backward(activated[at], before(t, b, unit, c, cx), c[at],
                                           grad_output[n0 * hidden + at] + dh,
                                           continues ? grad_cell[first] : grad_cy[at_first]);
          grad_cell[first] = found.c_before;
          const Gates<double>& gradient = found.pre_activations;
          const double of_gates[] = {gradient.i, gradient.f, gradient.g, gradient.o};
          for (size_t gate = 0; gate < 4; ++gate) {
            const size_t column = token * gates + gate * hidden + unit;
            gradients[column] = of_gates[gate];
            backward_error.compare(grad_gates[n0 * gates + column], of_gates[gate]);
          }
          backward_error.compare(h_before[n0 * hidden + at], before(t, b, unit, h, hx));
          if (t == 0) backward_error.compare(grad_cx[at_first], found.c_before);
        }
      }
    }
    for (size_t b = 0; b < present; ++b) {
      for (size_t unit = 0; unit < hidden; ++unit) {
        backward_error.compare(grad_hx[(b0 + b) * hidden + unit], to_hidden(b, unit));
      }
    }
    for (size_t k = filled * gates; k < tokens * gates; ++k) {
      backward_error.compare(grad_gates[n0 * gates + k], 0);
    }
  }
  Fingerprint bits;
  for (const auto* array : {&output, &hy, &cy, &grad_gates, &h_before, &grad_hx, &grad_cx}) {
    bits.add(*array);
  }
  bits.add(workspace);
  std::printf("groups %d %d blocks %d %d forward %.3g backward %.3g bits %016llx\n",
              forward.partition.groups, backward.partition.groups, forward.partition.blocks,
              backward.partition.blocks, forward_error.value, backward_error.value,
              static_cast<unsigned long long>(bits.value));
  return 0;
}

// The work partitions: a line for each of many sizes, "ALGORITHM TYPE HIDDEN BATCH forward
// backward", each as models of a launch x groups of a model x blocks of a group.
template <typename Scalar>
void print_partitions(const char* type, int64_t models) {
  for (const Algorithm algorithm : {Algorithm::persistent, Algorithm::cluster}) {
    for (int64_t hidden = 128; hidden <= 1024; hidden += 8) {
      for (const int64_t batch : {1, 16, 64, 128, 256, 1024}) {
        const WorkPartition forward = partition_forward<Scalar>(batch, hidden, algorithm, models);
        const WorkPartition backward = partition_backward<Scalar>(batch, hidden, algorithm, models);
        std::printf("%s %s %d %d: %d x %d x %d, %d x %d x %d of %d\n",
                    algorithm == Algorithm::persistent ? "persistent" : "cluster", type,
                    static_cast<int>(hidden), static_cast<int>(batch), forward.models,
                    forward.groups, forward.blocks, backward.models, backward.groups,
                    backward.blocks, backward.warp_group_units);
      }
    }
  }
}

}  // namespace

int main(int count, char** words) {
  if (count <= 3 && count > 1 && std::string(words[1]) == "partitions") {
    const int64_t models = count == 3 ? std::atoll(words[2]) : 1;
    print_partitions<float>("float", models);
    print_partitions<c10::BFloat16>("bfloat16", models);
    return 0;
  }
  if (count != 5 && count != 7 && count != 8) return 2;
  Layout layout{};
  const std::string name = words[1];
  layout.algorithm = name.rfind("cluster", 0) == 0 ? Algorithm::cluster : Algorithm::persistent;
  layout.eights = name == "untiled8" || name == "cluster8";
  layout.untiled = name.rfind("untiled", 0) == 0;
  for (char* part = std::strtok(words[4], ","); part; part = std::strtok(nullptr, ",")) {
    layout.sizes.push_back(std::atoll(part));
    layout.tokens += layout.sizes.back();
  }
  layout.batch = layout.sizes[0];
  if (count >= 7) layout.tokens = std::atoll(words[5]), layout.batch = std::atoll(words[6]);
  layout.models = count == 8 ? std::atoll(words[7]) : 1;
  const std::string type = words[2];
  const size_t hidden = std::atoll(words[3]);
  if (type == "float") return check<float>(hidden, layout);
  return type == "half" ? check<c10::Half>(hidden, layout) : check<c10::BFloat16>(hidden, layout);
}
