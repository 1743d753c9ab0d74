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

}  // namespace
}  // namespace metarec::METAREC_ISA
