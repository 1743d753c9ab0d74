#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace metarec {

// Memory that is handed out in pieces, which begin on cache lines, and taken back all at once or down to a mark.
template <class Real>
class Workspace {
 public:
  struct Mark {
    std::size_t chunk;
    std::int64_t used;
  };

  Real* take(std::int64_t count) {
    const std::int64_t size = (count + kLine - 1) / kLine * kLine;
    while (chunks_.empty() || used_ + size > chunks_[chunk_].size) next(size);
    Real* piece = chunks_[chunk_].begin + used_;
    used_ += size;
    return piece;
  }

  Mark mark() const { return {chunk_, used_}; }

  void release(const Mark& mark) {
    chunk_ = mark.chunk;
    used_ = mark.used;
  }

  // Takes everything back, and makes one chunk of the many that it took.
  void reset() {
    if (chunks_.size() > 1) {
      std::int64_t total = 0;
      for (const Chunk& chunk : chunks_) total += chunk.size;
      chunks_.clear();
      chunks_.emplace_back(total);
    }
    release({0, 0});
  }

 private:
  static constexpr std::int64_t kLine = 64 / sizeof(Real);

  struct Chunk {
    explicit Chunk(std::int64_t count)
        : size(count), storage(std::make_unique_for_overwrite<Real[]>(static_cast<std::size_t>(count + kLine))) {
      const auto past = reinterpret_cast<std::uintptr_t>(storage.get()) % 64 / sizeof(Real);
      begin = storage.get() + (past ? kLine - static_cast<std::int64_t>(past) : 0);
    }
    std::int64_t size;
    std::unique_ptr<Real[]> storage;
    Real* begin;
  };

  void next(std::int64_t size) {
    constexpr std::int64_t least = 1 << 16;
    if (chunk_ + 1 < chunks_.size()) {
      ++chunk_;
    } else {
      chunks_.emplace_back(std::max(size, least));
      chunk_ = chunks_.size() - 1;
    }
    used_ = 0;
  }

  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0;
  std::int64_t used_ = 0;
};

}  // namespace metarec
