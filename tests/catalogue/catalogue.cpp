// Runs the table of cases.txt. Makes each input, runs the program on it, and compares the exit code and the words with
// the row. Each refusal must print one line and must leave no output file and no temporary file.
#include <fstream>
#include <map>
#include <sstream>

#include "cli/program.h"
#include "data/encoded.h"
#include "nacre/coding/codec_files.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;

namespace {

struct Row {
  std::string name, recipe, arguments, says;
  int code = 0, line = 0;
  int64_t frames = -1;  ///< frames in the resulting stream; -1: not checked
};

std::vector<std::string> split(const std::string& text, const std::string& at) {
  std::vector<std::string> parts;
  size_t from = 0;
  for (size_t found = text.find(at); found != std::string::npos; from = found + at.size(), found = text.find(at, from))
    parts.push_back(text.substr(from, found - from));
  parts.push_back(text.substr(from));
  return parts;
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<Row> read_rows() {
  std::ifstream in(NACRE_CATALOGUE);
  REQUIRE(in);
  std::vector<Row> rows;
  std::string line;
  for (int n = 1; std::getline(in, line); ++n) {
    if (trimmed(line).empty() || line[0] == '#') continue;
    const std::vector<std::string> fields = split(line, " ; ");
    INFO("cases.txt, line " << n << ": " << line);
    REQUIRE(fields.size() == 5);
    Row c{.name = trimmed(fields[0]),
          .recipe = trimmed(fields[1]),
          .arguments = trimmed(fields[2]),
          .says = trimmed(fields[4]),
          .line = n};
    std::istringstream result(fields[3]);
    result >> c.code >> c.frames;
    if (!result) c.frames = -1;
    rows.push_back(c);
  }
  return rows;
}

std::string unhex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

/// The base inputs of the recipes, made once.
class Kitchen {
 public:
  Kitchen() : model_(tiny_model(folder_)) {
    const std::string wav = write_voice(folder_ / "voice.wav", 4000);
    REQUIRE(run(folder_, {"encode", wav, "-o", folder_ / "stream", "-m", model_, "-q"}).code == 0);
    bases_["stream"] = slurp(folder_ / "stream");
    bases_["model"] = slurp(model_);
    bases_["ecdc"] = std::string("ECDC\0\0\0\0\x38", 9) +
                     R"({"m": "encodec_24khz", "al": 9600, "nc": 8, "lm": false})" +
                     std::string(300, '\x5a');  // 30 frames
    for (const int frames : {0, 1, 4000, 40000}) {
      const std::vector<float> x = voice(frames, 16000);
      const auto encoded = [&](const std::string& name, int format, int channels = 1) {
        write_encoded(folder_ / "base", format, x, 16000, channels);
        bases_[name + " " + std::to_string(frames)] = slurp(folder_ / "base");
      };
      bases_["wav " + std::to_string(frames)] = training::wav_bytes(x, 16000);
      if (frames == 0) continue;
      encoded("float", SF_FORMAT_WAV | SF_FORMAT_FLOAT);
      encoded("wav24", SF_FORMAT_WAV | SF_FORMAT_PCM_24);
      encoded("aiff", aiff_format);
      encoded("au", au_format);
      encoded("caf", SF_FORMAT_CAF | SF_FORMAT_PCM_16);
      encoded("w64", SF_FORMAT_W64 | SF_FORMAT_PCM_16);
      encoded("sph", SF_FORMAT_NIST | SF_FORMAT_PCM_16);
      encoded("rf64", SF_FORMAT_RF64 | SF_FORMAT_PCM_16);
      encoded("ulaw", SF_FORMAT_WAV | SF_FORMAT_ULAW);
      encoded("flac", flac_format);
      encoded("ogg", vorbis_format);
      encoded("opus", opus_format);
      encoded("mp3", mp3_format);
      if (frames % 2 == 0) encoded("stereo", SF_FORMAT_WAV | SF_FORMAT_PCM_16, 2);
    }
  }

  const Folder& folder() const { return folder_; }
  const std::string& model() const { return model_; }

  /// Makes the input of a recipe at `path`.
  void cook(const std::string& recipe, const fs::path& path) const {
    const std::vector<std::string> steps = split(recipe, ", ");
    if (steps[0] == "nothing") return;
    if (steps[0] == "folder") {
      fs::create_directory(path);
      return;
    }
    std::string bytes;
    if (steps[0].starts_with("text ")) {
      bytes = recipe.substr(5);
    } else {
      const auto base = bases_.find(steps[0]);
      const bool empty = steps[0] == "empty";
      INFO(recipe);
      REQUIRE((empty || base != bases_.end()));
      bytes = empty ? "" : base->second;
      for (size_t i = 1; i < steps.size(); ++i) bytes = changed(bytes, steps[i]);
    }
    spill(path, bytes);
  }

 private:
  /// The position of a change: a number, or a text and an offset from its first byte ("data+4").
  static size_t place(const std::string& bytes, const std::string& where) {
    const size_t plus = where.find('+');
    if (plus == std::string::npos) return static_cast<size_t>(std::stoul(where));
    const size_t at = bytes.find(where.substr(0, plus));
    INFO(where);
    REQUIRE(at != std::string::npos);
    return at + static_cast<size_t>(std::stoul(where.substr(plus + 1)));
  }
  std::string changed(std::string bytes, const std::string& step) const {
    std::istringstream words(step);
    std::string what, where, hex;
    words >> what >> where >> hex;
    INFO(step);
    if (what == "keep") return bytes.substr(0, place(bytes, where));
    if (what == "cut") return bytes.substr(0, bytes.size() - place(bytes, where));
    if (what == "set") return bytes.replace(place(bytes, where), hex.size() / 2, unhex(hex));
    if (what == "insert") return bytes.insert(place(bytes, where), unhex(hex));
    if (what == "append") return bytes + unhex(where);
    if (what == "flip") {
      char& c = bytes.at(place(bytes, where));
      c = static_cast<char>(c ^ 4);
      return bytes;
    }
    if (what == "zeros") return std::string(place(bytes, where), '\0') + bytes;
    if (what == "twice") return bytes + bytes;
    if (what == "tag") return behind_tag(bytes);
    if (what == "long-tag") return long_tag(place(bytes, where)) + bytes;
    if (what == "and-part") return bytes + bytes.substr(0, place(bytes, where));
    if (what == "unmeasured") return without_length(bytes);
    if (what == "unfinished") return unfinished(bytes, where);
    if (what == "no-end") return without_last_page(bytes);
    if (what == "no-index") return bytes.substr(second_frame(bytes));
    FAIL("no such step");
    return bytes;
  }

  /// An ID3v2.4 tag with `size` bytes of padding.
  static std::string long_tag(size_t size) {
    std::string tag("ID3\4\0\0", 6);
    for (const int shift : {21, 14, 7, 0}) tag += static_cast<char>(size >> shift & 127);
    return tag + std::string(size, '\0');
  }

  Folder folder_;
  std::string model_;
  std::map<std::string, std::string> bases_;
};

std::vector<std::string> arguments_of(const Row& c, const std::string& in, const std::string& out,
                                      const std::string& model) {
  std::string text = c.arguments;
  // Short names of common command lines.
  for (const auto& [word, whole] : std::map<std::string, std::string>{{"encode", "encode $in -o $out -m $model -q"},
                                                                      {"decode", "decode $in -o $out -m $model -q"},
                                                                      {"eval", "eval $in -m $model -q"}}) {
    if (text == word) text = whole;
    if (text.starts_with(word + " --")) text = whole + text.substr(word.size());
  }
  std::vector<std::string> arguments;
  for (std::string word : split(text, " ")) {
    for (const auto& [name, value] : std::map<std::string, std::string>{{"$in", in}, {"$out", out}, {"$model", model}})
      if (const size_t at = word.find(name); at != std::string::npos) word.replace(at, name.size(), value);
    arguments.push_back(word);
  }
  return arguments;
}

}  // namespace

TEST_CASE("the catalogue of inputs", "[catalogue]") {
  const Kitchen kitchen;
  const std::vector<Row> rows = read_rows();
  CHECK(rows.size() >= 120);
  for (const Row& c : rows) {
    const Folder room;
    const std::string in = room / c.name, out = room / "out";
    kitchen.cook(c.recipe, in);
    const bool had_in = fs::exists(in);
    const Outcome o = run(kitchen.folder(), arguments_of(c, in, out, kitchen.model()));
    INFO("cases.txt, line " << c.line << ": " << c.name << " ; " << c.recipe << "\nsaid: " << o.err);
    CHECK(o.code == c.code);
    if (c.says == "-")
      CHECK(o.err.empty());
    else
      CHECK(o.err.find(c.says) != std::string::npos);
    if (c.code != 0) {
      CHECK(o.lines() == 1);
      CHECK(o.err.rfind("nacre: ", 0) == 0);
      CHECK(o.out.empty());
    }
    if (c.frames >= 0 && o.code == 0) CHECK(static_cast<int64_t>(training::check_stream(out).samples) == c.frames);
    // Only the input, and the output of a successful run, may remain.
    const bool makes =
        c.arguments.starts_with("encode") || c.arguments.starts_with("decode") || c.arguments.starts_with("export");
    CHECK(fs::exists(out) == (c.code == 0 && makes));
    CHECK(room.count() == (had_in ? 1 : 0) + (fs::exists(out) ? 1 : 0));
  }
}
