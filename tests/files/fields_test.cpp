// A key's limits, as text and in effect, and the visitors that read, write, check and list keys.
#include "files/fields.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "catch.h"
#include "nacre/error.h"

using namespace nacre;
using nlohmann::json;

namespace {

enum class Colour : uint8_t { red, green, blue };
struct Paint {
  int64_t layers = 2;
  uint64_t seed = 7;
  double gloss = 0.5, price = 1;
  bool matt = false;
  std::vector<int64_t> sizes{1, 2}, marks{};
  Colour colour = Colour::green;
  std::string shop = "north";
};
template <class V>
void fields(V& v, Paint& p) {
  using namespace field;
  v("layers", p.layers, range(1, 9), "how many");
  v("seed", p.seed, at_least(0), "of the pattern");
  v("gloss", p.gloss, range(0, below(1)), "part of the light");
  v("price", p.price, at_least(above(0), 100), "per litre");
  v("matt", p.matt, flag(), "no gloss");
  v("sizes", p.sizes, list(range(1, 5), 1, 3, "tins"), "of the tins");
  v("marks", p.marks, list(range(-3, 3), 0, 2), "on the tins");
  v("colour", p.colour, words({"red", "green", "blue"}), "of the paint");
  v("shop", p.shop, words({"north", "south"}), "that sells it");
}

template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "accepted";
}
/// The error of check_limits() for a paint.
std::string checked(Paint p, std::string (*text)(double) = shortest) {
  return refusal([&] { check_limits("paint", fields_of(p), text); });
}
/// The error of read() for a value.
std::string taken(Paint& p, const std::string& key, const std::string& value) {
  const Fields all = fields_of(p);
  const Field* f = find(all, key);
  REQUIRE(f != nullptr);
  return refusal([&] { read(*f, json::parse(value), "paint."); });
}

}  // namespace

TEST_CASE("fields: limits in words", "[config]") {
  using namespace field;
  CHECK(range(1, 4096).text == "1 to 4096");
  CHECK(range(-3, int64_t{1} << 40).text == "-3 to 1099511627776");
  CHECK(range(0, 1e6).text == "0 to 1e6");
  CHECK(range(0.25, 1e5).text == "0.25 to 100000");
  CHECK(range(1e-9, 1e12).text == "1e-09 to 1e+12");
  CHECK(range(0, below(1)).text == "0 to below 1");
  CHECK(range(above(0), 10).text == "above 0, at most 10");
  CHECK(range(above(0), below(1)).text == "above 0, below 1");
  CHECK(at_least(3).text == "3 or more");
  CHECK(at_least(0, below(1e9)).text == "0 or more");
  CHECK(at_least(above(0)).text == "above 0");
  CHECK(at_least(0).zero("none").text == "0 (none) or more");
  CHECK(range(0, 10).zero("never").text == "0 (never) to 10");
  CHECK(words({"a", "b", "c"}).text == "a, b or c");
}

TEST_CASE("fields: limits hold at their ends, and NaN is outside", "[config]") {
  using namespace field;
  struct Case {
    Limits limits;
    double low, high;    // the largest and smallest allowed numbers
    double under, over;  // the first numbers outside; NaN: none
  };
  const double none = std::numeric_limits<double>::quiet_NaN(), most = std::numeric_limits<double>::max();
  const auto up = [](double x) { return std::nextafter(x, 1e300); };
  const auto down = [](double x) { return std::nextafter(x, -1e300); };
  for (const Case& c :
       {Case{range(1, 9), 1, 9, down(1), up(9)}, Case{range(0, below(1)), 0, down(1), down(0), 1},
        Case{range(above(0), 10), up(0), 10, 0, up(10)}, Case{range(above(0), below(1)), up(0), down(1), 0, 1},
        Case{at_least(3), 3, most, down(3), none}, Case{at_least(above(0)), up(0), most, 0, none},
        Case{at_least(0, below(100)), 0, down(100), down(0), 100},
        Case{described("anything"), -most, most, none, none}}) {
    INFO(c.limits.text);
    CHECK(c.limits.holds(c.low));
    CHECK(c.limits.holds(c.high));
    CHECK_FALSE(c.limits.holds(c.under));
    CHECK_FALSE(c.limits.holds(c.over));
    CHECK_FALSE(c.limits.holds(none));
  }
}

TEST_CASE("fields: keys that are outside their limits are named", "[config]") {
  CHECK(checked({}) == "accepted");
  CHECK(checked({.layers = 10}) == "paint.layers is 10, expected 1 to 9");
  CHECK(checked({.layers = INT64_MIN}) == "paint.layers is -9223372036854775808, expected 1 to 9");
  CHECK(checked({.gloss = 1}) == "paint.gloss is 1.0, expected 0 to below 1");
  CHECK(checked({.gloss = 1}, twelve_digits) == "paint.gloss is 1, expected 0 to below 1");
  CHECK(checked({.price = 0}) == "paint.price is 0.0, expected above 0");
  CHECK(checked({.price = 100.5}) == "paint.price is 100.5, expected above 0");
  CHECK(checked({.sizes = {}}) == "paint.sizes is 0 tins, expected 1 to 3 tins");
  CHECK(checked({.sizes = {1, 1, 1, 1}}) == "paint.sizes is 4 tins, expected 1 to 3 tins");
  CHECK(checked({.sizes = {1, 6}}) == "paint.sizes is 6, expected 1 to 5");
  CHECK(checked({.marks = {0, 0, 0}}) == "paint.marks is 3 entries, expected 0 to 2");
  CHECK(checked({.marks = {-3, 3}}) == "accepted");
  CHECK(checked({.shop = "south"}) == "accepted");
  CHECK(checked({.shop = "nort"}) == "paint.shop is \"nort\", expected north or south; did you mean 'north'?");
  // The first error in the order of fields().
  CHECK(checked({.layers = 0, .gloss = 2}) == "paint.layers is 0, expected 1 to 9");
}

TEST_CASE("fields: values are read by their type", "[config]") {
  Paint p;
  for (const auto& [key, value] : {std::pair{"layers", "-5"},
                                   {"seed", "18446744073709551615"},
                                   {"gloss", "3"},
                                   {"price", "2.5"},
                                   {"matt", "true"},
                                   {"sizes", "[]"},
                                   {"marks", "[-1, 2]"},
                                   {"colour", "\"blue\""},
                                   {"shop", "\"south\""}}) {
    INFO(key);
    CHECK(taken(p, key, value) == "accepted");
  }
  CHECK(p.layers == -5);
  CHECK(p.seed == UINT64_MAX);
  CHECK(p.gloss == 3);
  CHECK(p.price == 2.5);
  CHECK(p.matt);
  CHECK(p.sizes.empty());
  CHECK(p.marks == std::vector<int64_t>{-1, 2});
  CHECK(p.colour == Colour::blue);
  CHECK(p.shop == "south");

  for (const auto& [key, value, said] : std::initializer_list<std::array<const char*, 3>>{
           {"layers", "1.5", "1.5, expected an integer of 64 bits"},
           {"layers", "9223372036854775808", "9223372036854775808, expected an integer of 64 bits"},
           {"layers", "\"x\"", "\"x\", expected an integer of 64 bits"},
           {"seed", "-1", "-1, expected 0 or more"},
           {"seed", "0.5", "0.5, expected an integer of 64 bits"},
           {"gloss", "true", "true, expected a number"},
           {"matt", "1", "1, expected true or false"},
           {"sizes", "3", "3, expected a list of integers"},
           {"sizes", "[1, 2.5]", "[1,2.5], expected a list of integers"},
           {"sizes", "[9223372036854775808]", "[9223372036854775808], expected a list of integers"},
           {"colour", "2", "2, expected a string"},
           {"colour", "\"bleu\"", "\"bleu\", expected red, green or blue; did you mean 'blue'?"},
           {"shop", "2", "2, expected a string"},
           {"shop", "\"nort\"", "\"nort\", expected north or south; did you mean 'north'?"}}) {
    CHECK(taken(p, key, value) == "paint." + std::string(key) + " is " + said);
  }
  CHECK(taken(p, "layers", "\"" + std::string(200, 'x') + "\"").size() < 150);
  CHECK(p.layers == -5);  // refused and unchanged
  CHECK(p.colour == Colour::blue);
  CHECK(p.shop == "south");
}

TEST_CASE("fields: keys are written and listed", "[config]") {
  Paint p;
  const Fields all = fields_of(p);
  CHECK(written(all).dump() == R"({"colour":"green","gloss":0.5,"layers":2,"marks":[],"matt":false,"price":1.0,)"
                               R"("seed":7,"shop":"north","sizes":[1,2]})");
  CHECK(keys_of(all) ==
        std::vector<std::string>{"colour", "gloss", "layers", "marks", "matt", "price", "seed", "shop", "sizes"});
  CHECK(find(all, "layer") == nullptr);
  std::string types, ranges;
  for (const Field& f : all) types += std::string(f.type()) + "; ", ranges += f.range() + "; ";
  CHECK(types == "integer; integer; number; number; boolean; list of integers; list of integers; word; word; ");
  CHECK(ranges ==
        "1 to 9; 0 or more; 0 to below 1; above 0; true or false; 1 to 3 tins, each 1 to 5; "
        "0 to 2, each -3 to 3; red, green or blue; north or south; ");
}
