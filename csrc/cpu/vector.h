// Vectors of numbers for one instruction set, in GCC's and Clang's portable notation, and their
// exponentials. Included once for each instruction set, into its own namespace (see
// kernels.inl).

struct Single {
  using Number = float;
  using Bits __attribute__((vector_size(CAPTIONER_VECTOR_BYTES))) = int32_t;
  using Vector __attribute__((vector_size(CAPTIONER_VECTOR_BYTES))) = float;
};

struct Double {
  using Number = double;
  using Bits __attribute__((vector_size(CAPTIONER_VECTOR_BYTES))) = int64_t;
  using Vector __attribute__((vector_size(CAPTIONER_VECTOR_BYTES))) = double;
};

template <typename T>
struct Traits;
template <>
struct Traits<float> : Single {};
template <>
struct Traits<double> : Double {};

template <typename T>
using Vector = typename Traits<T>::Vector;

template <typename T>
constexpr int64_t kWidth = CAPTIONER_VECTOR_BYTES / sizeof(T);

template <typename T>
CAPTIONER_INLINE Vector<T> load(const T* from) {
  Vector<T> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
CAPTIONER_INLINE void store(T* to, Vector<T> value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// The first `count` numbers only; the rest of the vector is 0.
template <typename T>
CAPTIONER_INLINE Vector<T> load(const T* from, int64_t count) {
  if (count == kWidth<T>) return load(from);
  Vector<T> value{};
  __builtin_memcpy(&value, from, count * sizeof(T));
  return value;
}

template <typename T>
CAPTIONER_INLINE void store(T* to, Vector<T> value, int64_t count) {
  if (count == kWidth<T>) return store(to, value);
  __builtin_memcpy(to, &value, count * sizeof(T));
}

// exp(x) of -87 <= x <= 88 to 2 units in the last place, after Cephes' expf (S. L. Moshier). Values
// beyond are clamped; NaN stays NaN.
CAPTIONER_INLINE Single::Vector exponential(Single::Vector x) {
  using V = Single::Vector;
  x = x > 88.0f ? V{} + 88.0f : x;
  x = x < -87.0f ? V{} - 87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const V shifted = x * 1.44269504088896341f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const auto power = ((Single::Bits)shifted << 23) + 0x3f800000;  // 2^n; magic's own bits fall out
  return p * (V)power;
}

// exp(x) of -708 <= x <= 709 likewise, after Cephes' exp.
CAPTIONER_INLINE Double::Vector exponential(Double::Vector x) {
  using V = Double::Vector;
  x = x > 709.0 ? V{} + 709.0 : x;
  x = x < -708.0 ? V{} - 708.0 : x;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const V shifted = x * 1.4426950408889634074 + magic;
  const V n = shifted - magic;
  const V r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  const V rr = r * r;
  V p = V{} + 1.26177193074810590878e-4;
  p = p * rr + 3.02994407707441961300e-2;
  p = (p * rr + 9.99999999999999999910e-1) * r;
  V q = V{} + 3.00198505138664455042e-6;
  q = q * rr + 2.52448340349684104192e-3;
  q = q * rr + 2.27265548208155028766e-1;
  q = q * rr + 2.00000000000000000005;
  const auto power = ((Double::Bits)shifted << 52) + 0x3ff0000000000000;
  return (p / (q - p) * 2.0 + 1.0) * (V)power;
}

// tanh(x) of |x| < 0.625, where the formula by the exponential would lose digits (Cephes' tanhf,
// tanh).
CAPTIONER_INLINE Single::Vector small_tanh(Single::Vector x) {
  const Single::Vector z = x * x;
  Single::Vector p = Single::Vector{} - 5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return p * z * x + x;
}

CAPTIONER_INLINE Double::Vector small_tanh(Double::Vector x) {
  const Double::Vector z = x * x;
  Double::Vector p = Double::Vector{} - 9.64399179425052238628e-1;
  p = p * z - 9.92877231001918586564e1;
  p = p * z - 1.61468768441708447952e3;
  Double::Vector q = z + 1.12811678491632931402e2;
  q = q * z + 2.23548839060100448583e3;
  q = q * z + 4.84406305325125486048e3;
  return p / q * z * x + x;
}

template <typename T>
struct VectorMath {
  using V = Vector<T>;
  CAPTIONER_INLINE static V one() { return V{} + T(1); }
  CAPTIONER_INLINE static V sigmoid(V x) { return T(1) / (T(1) + exponential(-x)); }
  CAPTIONER_INLINE static V tanh(V x) {
    const V size = x < T(0) ? -x : x;
    const V large = T(1) - T(2) / (exponential(size + size) + T(1));
    return size < T(0.625) ? small_tanh(x) : (x < T(0) ? -large : large);
  }
};
