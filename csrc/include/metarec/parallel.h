// How the functions of this library share out work: the caller brings its own thread pool, or none.
#pragma once

#include <cstdint>
#include <functional>

namespace metarec {

struct Parallel {
  // How many parts of the work can run at once. Results never depend on it.
  std::int64_t threads = 1;
  // Calls body(part) once for each part in [0, parts), in any order, and returns when all are done.
  std::function<void(std::int64_t parts, const std::function<void(std::int64_t part)>& body)> run =
      [](std::int64_t parts, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t part = 0; part < parts; ++part) body(part);
      };
};

}  // namespace metarec
