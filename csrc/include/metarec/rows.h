// Numbers of rows of a table, as the caller has them.
#pragma once

#include <cstdint>
#include <span>
#include <variant>

namespace metarec {

using Rows = std::variant<std::span<const std::int32_t>, std::span<const std::int64_t>>;

}  // namespace metarec
