// Vectors of the instruction set that a kernel is being compiled for; included by kernels only, once per set.
namespace metarec::METAREC_ISA {
namespace {

template <class Real, int Count>
struct VectorOf {
  typedef Real Type __attribute__((vector_size(Count * sizeof(Real))));
  typedef Real Unaligned __attribute__((vector_size(Count * sizeof(Real)), aligned(alignof(Real)), may_alias));
};

template <class Real>
constexpr int kLanes = METAREC_VECTOR_BYTES / static_cast<int>(sizeof(Real));

template <class Real>
using Vector = typename VectorOf<Real, kLanes<Real>>::Type;

template <class Real>
[[gnu::always_inline]] inline Vector<Real> load(const Real* from) {
  return *reinterpret_cast<const typename VectorOf<Real, kLanes<Real>>::Unaligned*>(from);
}

template <class Real>
[[gnu::always_inline]] inline void store(Real* to, Vector<Real> value) {
  *reinterpret_cast<typename VectorOf<Real, kLanes<Real>>::Unaligned*>(to) = value;
}

template <class Real, int Count>
[[gnu::always_inline]] inline Real sum_lanes(typename VectorOf<Real, Count>::Type value) {
  if constexpr (Count == 1) {
    return value[0];
  } else {
    typename VectorOf<Real, Count / 2>::Type halves[2];
    std::memcpy(halves, &value, sizeof(value));
    return sum_lanes<Real, Count / 2>(halves[0] + halves[1]);
  }
}

template <class Real>
[[gnu::always_inline]] inline Real sum(Vector<Real> value) {
  return sum_lanes<Real, kLanes<Real>>(value);
}

// Integers of 16 bits as those of 32, and back where they fit. GCC makes several shuffles of a conversion that is one
// instruction.
[[gnu::always_inline]] inline Vector<std::uint32_t> widened(const void* from) {
#if METAREC_VECTOR_BYTES == 64
  const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(from));
  return reinterpret_cast<Vector<std::uint32_t>>(_mm512_maskz_cvtepu16_epi32(0xffff, halves));
#elif METAREC_VECTOR_BYTES == 32
  const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(from));
  return reinterpret_cast<Vector<std::uint32_t>>(_mm256_cvtepu16_epi32(halves));
#else
  typename VectorOf<std::uint16_t, kLanes<float>>::Type halves;
  std::memcpy(&halves, from, sizeof(halves));
  return __builtin_convertvector(halves, Vector<std::uint32_t>);
#endif
}

[[gnu::always_inline]] inline void store_narrowed(void* to, Vector<std::uint32_t> values) {
#if METAREC_VECTOR_BYTES == 64
  const __m256i halves = _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(values));
#else
  const auto halves = __builtin_convertvector(values, typename VectorOf<std::uint16_t, kLanes<float>>::Type);
#endif
  std::memcpy(to, &halves, sizeof(halves));
}

// Values that are stored in another type, or one at a time where Value is no vector.
template <class Value, class Stored>
[[gnu::always_inline]] inline Value load_as(const Stored* from) {
  if constexpr (sizeof(Value) == sizeof(Stored)) {
    return *from;
  } else if constexpr (sizeof(Value) == sizeof(float)) {
    const std::uint32_t bits = std::uint32_t{from->bits} << 16;
    Value value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  } else if constexpr (sizeof(Stored) == sizeof(std::uint16_t)) {
    return reinterpret_cast<Value>(widened(from) << 16);
  } else {
    return load(from);
  }
}

template <class Value>
using BitsOf = std::conditional_t<sizeof(Value) == sizeof(float), std::uint32_t, Vector<std::uint32_t>>;

// The upper 16 bits of each sum; a NaN stays one.
template <class Value>
[[gnu::always_inline]] inline BitsOf<Value> cut_bits(Value value, BitsOf<Value> added) {
  BitsOf<Value> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return value != value ? (bits >> 16 | 0x40) : (bits + added) >> 16;
}

// The nearest value of 16 bits, the even one of two.
template <class Value>
[[gnu::always_inline]] inline BitsOf<Value> rounded_bits(Value value) {
  BitsOf<Value> bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return cut_bits(value, 0x7fff + (bits >> 16 & 1));
}

template <class Bits>
[[gnu::always_inline]] inline void store_bits(BFloat16* to, Bits bits) {
  if constexpr (sizeof(bits) == sizeof(float)) {
    to->bits = static_cast<std::uint16_t>(bits);
  } else {
    store_narrowed(to, bits);
  }
}

template <class Value, class Stored>
[[gnu::always_inline]] inline void store_as(Stored* to, Value value) {
  if constexpr (sizeof(Value) == sizeof(Stored)) {
    *to = value;
  } else if constexpr (sizeof(Stored) == sizeof(std::uint16_t)) {
    store_bits(to, rounded_bits(value));
  } else {
    store(to, value);
  }
}

// The noise of a column, or of a vector of them.
template <class Value>
[[gnu::always_inline]] inline BitsOf<Value> noise_at(const RowNoise& noise, std::int64_t column) {
  BitsOf<Value> sums = {};
  if constexpr (sizeof(Value) > sizeof(float)) {
    for (std::uint32_t lane = 0; lane < kLanes<float>; ++lane) sums[lane] = lane * RowNoise::kStep;
  }
  return (noise.begin() + (sums + static_cast<std::uint32_t>(column) * RowNoise::kStep)) >> 16;
}

// Rounds stochastically, by noise below 2^16.
template <class Value>
[[gnu::always_inline]] inline void store_as(BFloat16* to, Value value, BitsOf<Value> noise) {
  store_bits(to, cut_bits(value, noise));
}

[[gnu::always_inline]] inline float square_root(float value) { return std::sqrt(value); }
[[gnu::always_inline]] inline double square_root(double value) { return std::sqrt(value); }
#if METAREC_VECTOR_BYTES == 64
[[gnu::always_inline]] inline Vector<float> square_root(Vector<float> value) { return _mm512_maskz_sqrt_ps(0xffff, value); }
[[gnu::always_inline]] inline Vector<double> square_root(Vector<double> value) { return _mm512_maskz_sqrt_pd(0xff, value); }
#elif METAREC_VECTOR_BYTES == 32
[[gnu::always_inline]] inline Vector<float> square_root(Vector<float> value) { return _mm256_sqrt_ps(value); }
[[gnu::always_inline]] inline Vector<double> square_root(Vector<double> value) { return _mm256_sqrt_pd(value); }
#else
[[gnu::always_inline]] inline Vector<float> square_root(Vector<float> value) {
  for (int lane = 0; lane < kLanes<float>; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
}
[[gnu::always_inline]] inline Vector<double> square_root(Vector<double> value) {
  for (int lane = 0; lane < kLanes<double>; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
}
#endif

// Fetches what lies at an address that may be past the end of an array. The empty statement is for GCC, which takes a
// function that does nothing but fetch for one without effect, and drops the calls of it.
[[gnu::always_inline]] inline void prefetch(const void* array, std::size_t offset, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(array) + offset;
  for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(reinterpret_cast<const void*>(address + line));
  asm volatile("");
}

// Bit i says that value i is not below limit i; what is not a number is not.
[[gnu::always_inline]] inline std::uint32_t reaches(Vector<float> values, Vector<float> limits) {
#if METAREC_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(values), reinterpret_cast<__m512>(limits), _CMP_NLT_UQ);
#elif METAREC_VECTOR_BYTES == 32
  return static_cast<std::uint32_t>(_mm256_movemask_ps(
      _mm256_cmp_ps(reinterpret_cast<__m256>(values), reinterpret_cast<__m256>(limits), _CMP_NLT_UQ)));
#else
  std::uint32_t bits = 0;
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    bits |= static_cast<std::uint32_t>(!(values[lane] < limits[lane])) << lane;
  }
  return bits;
#endif
}

// Pairs of 16-bit integers, one in each lane.
[[gnu::always_inline]] inline Vector<std::int32_t> load_pairs(const std::int16_t* from) {
  return load(reinterpret_cast<const std::int32_t*>(from));
}

[[gnu::always_inline]] inline Vector<std::int32_t> load_pairs(const std::int8_t* from) {
  constexpr int count = 2 * kLanes<std::int32_t>;
  typename VectorOf<std::int8_t, count>::Type narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return reinterpret_cast<Vector<std::int32_t>>(
      __builtin_convertvector(narrow, typename VectorOf<std::int16_t, count>::Type));
}

[[gnu::always_inline]] inline Vector<std::int32_t> broadcast_pair(const std::int16_t* from) {
  std::int32_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return Vector<std::int32_t>{} + pair;
}

// In each lane the sum of the two products of a pair with another.
[[gnu::always_inline]] inline Vector<std::int32_t> pair_products(Vector<std::int32_t> left,
                                                                 Vector<std::int32_t> right) {
#if METAREC_VECTOR_BYTES == 64
  return reinterpret_cast<Vector<std::int32_t>>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(left), reinterpret_cast<__m512i>(right)));
#elif METAREC_VECTOR_BYTES == 32
  return reinterpret_cast<Vector<std::int32_t>>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(left), reinterpret_cast<__m256i>(right)));
#elif defined(__SSE2__)
  return reinterpret_cast<Vector<std::int32_t>>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(left), reinterpret_cast<__m128i>(right)));
#else
  return (left << 16 >> 16) * (right << 16 >> 16) + (left >> 16) * (right >> 16);
#endif
}

}  // namespace
}  // namespace metarec::METAREC_ISA
