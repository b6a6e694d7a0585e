#pragma once
// Catch2 of version 2 or 3, whichever is installed. Version 3 lacks some names of version 2.
#if __has_include(<catch2/catch_test_macros.hpp>)
#define NACRE_CATCH 3
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using Catch::Approx;
namespace Catch {
using Matchers::EndsWith;
using Matchers::StartsWith;
inline Matchers::StringContainsMatcher Contains(const std::string& s) { return Matchers::ContainsSubstring(s); }
}  // namespace Catch
#else
#define NACRE_CATCH 2
#include <catch2/catch.hpp>
#endif
