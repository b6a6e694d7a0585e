// Display of text from outside, and the suggestion for a misspelt name.
#include "files/text.h"

#include <cmath>

#include "catch.h"
#include "files/spelling.h"

using namespace nacre;

TEST_CASE("text: what reaches a terminal holds no control characters") {
  CHECK(printable("plain é 語 🙂 name.wav") == "plain é 語 🙂 name.wav");
  CHECK(printable("a\x1b[31m\nb\t\x7f") == "a\\x1b[31m\\x0ab\\x09\\x7f");
  CHECK(printable(std::string("zero\0", 5)) == "zero\\x00");
  CHECK(printable("\xc2\x9b"
                  "31m") == "\\xc2\\x9b31m");  // U+009B begins a control sequence, as ESC [ does
  CHECK(printable("\xc2\xa0") == "\xc2\xa0");  // U+00A0 is the first printable one after the control characters
  // Bytes that are no valid UTF-8 are escaped, and valid ones beside them are kept.
  CHECK(printable("é\xff語\xc3") == "é\\xff語\\xc3");
  CHECK(printable("\xff\xc2\x9b") == "\\xff\\xc2\\x9b");
  CHECK(printable("\xed\xa0\x80") == "\\xed\\xa0\\x80");  // a surrogate
  CHECK(printable("") == "");
  CHECK(printable_lines("a\n  b\x1b\r\n") == "a\n  b\\x1b\\x0d\n");
  // Every single byte is printed as itself or as an escape of four characters.
  for (int c = 0; c < 256; ++c) {
    const std::string one(1, static_cast<char>(c));
    INFO("byte " << c);
    CHECK(printable(one).size() == (c >= 0x20 && c < 0x7f ? 1 : 4));
  }
}

TEST_CASE("text: a word of a command line is quoted where a shell would take it apart") {
  CHECK(shell_word("runs/a-1_b.2") == "runs/a-1_b.2");
  CHECK(shell_word("my run") == "'my run'");
  CHECK(shell_word("it's") == "'it'\\''s'");
  CHECK(shell_word("$(rm -rf x)") == "'$(rm -rf x)'");
  CHECK(shell_word("") == "''");
  CHECK(shell_word("~") == "'~'");
  CHECK(shell_word("é") == "'é'");
  CHECK(shell_word("a\nb'\\\x1b") == "$'a\\x0ab\\'\\\\\\x1b'");
}

TEST_CASE("text: a long text in quotes loses its middle, between whole characters") {
  const std::string long_text(121, 'x');
  CHECK(in_quotes(std::string(120, 'x')) == "\"" + std::string(120, 'x') + "\"");
  CHECK(in_quotes(long_text) == "\"" + std::string(60, 'x') + "..." + std::string(60, 'x') + "\"");
  // A character of three bytes lies across the end of the first half, then across the start of the second.
  const std::string letter = "\xe0\xb0\x85", control = "\xc2\x85";
  for (const size_t before : {58, 59, 60, 61}) {
    const std::string text = std::string(before, 'x') + letter + std::string(140 - before, 'y');
    const std::string head = std::string(std::min<size_t>(before, 60), 'x');
    CHECK(in_quotes(text) == "\"" + head + "..." + std::string(60, 'y') + "\"");
  }
  const std::string late = std::string(80, 'x') + letter + std::string(58, 'y');  // 141 bytes, the second half at 81
  CHECK(in_quotes(late) == "\"" + std::string(60, 'x') + "..." + std::string(58, 'y') + "\"");
  // A control character of two bytes across the middle of the first half's end is left out as well.
  const std::string with_control = std::string(59, 'x') + control + std::string(100, 'y');
  CHECK(in_quotes(with_control) == "\"" + std::string(59, 'x') + "..." + std::string(60, 'y') + "\"");
}
TEST_CASE("spelling: the nearest name, and none where nothing is near") {
  const std::vector<std::string> verbs{"train", "encode", "decode", "eval", "report", "info", "export"};
  CHECK(nearest("encod", verbs) == "encode");
  CHECK(nearest("ecnode", verbs) == "encode");
  CHECK(nearest("ENCODE", verbs) == "encode");
  CHECK(nearest("trian", verbs) == "train");
  CHECK(nearest("ex", verbs) == "export");
  CHECK(nearest("e", verbs).empty());  // three begin with it
  CHECK(nearest("sing", verbs).empty());
  CHECK(nearest("", verbs).empty());
  CHECK(nearest(std::string(100000, 'a'), verbs).empty());
  CHECK(nearest("--modle", {"--model", "--model-rate"}) == "--model");
  CHECK(nearest("--batchsize", {"--batch-size"}) == "--batch-size");
  CHECK(nearest("--batch", {"--batch-size", "--seed"}) == "--batch-size");
  CHECK(did_you_mean("sing", verbs).empty());
  CHECK(did_you_mean("infos", verbs) == "; did you mean 'info'?");
  CHECK(listed({"a"}) == "a");
  CHECK(listed({"a", "b"}) == "a or b");
  CHECK(listed({"a", "b", "c"}, "and") == "a, b and c");
}

TEST_CASE("text: durations in words") {
  CHECK(describe_duration(0.04) == "0.0 s");
  CHECK(describe_duration(9.96) == "10 s");
  CHECK(describe_duration(200) == "3 min 20 s");
  CHECK(describe_duration(7500) == "2 h 05 min");
  CHECK(describe_duration(276000) == "3 d 4 h");
  CHECK(describe_duration(std::nan("")) == "?");
}
