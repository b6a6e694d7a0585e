// The program with the command lines of a new user. A wrong word is reported with the nearest right one. One kind of
// fault has one exit code. Input of the wrong kind is identified. No file name reaches the terminal unescaped.
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "cli/shell.h"

using namespace nacre;
using namespace nacre::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

std::string line_of(const Words& words) {
  std::string line = "nacre";
  for (const std::string& w : words) line += " " + w.substr(0, 200);
  return line;
}

/// Expects this exit code, and one line on standard error that contains every one of the parts.
void told(const Folder& folder, const Words& words, int code, const Words& parts) {
  const Outcome o = run(folder, words);
  INFO(line_of(words));
  INFO(o.err);
  CHECK(o.code == code);
  CHECK(o.lines() == 1);
  CHECK(o.err.rfind("nacre: ", 0) == 0);
  for (const std::string& part : parts) CHECK_THAT(o.err, Catch::Contains(part));
}

/// A configuration that trains in a moment.
const char* const small_config =
    R"({"codec": {"encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2],
           "latent_dim": 8, "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16},
 "loss": {"windows": [16, 64], "mels": [5, 10]},
 "training": {"segment_length": 400, "batch_size": 2, "codebook_start_rows": 0, "max_steps": 1}})";

/// Writes a model file as another program might: the tensors without metadata.
void write_bare(const std::string& from, const std::string& to) {
  const std::string whole = slurp(from);
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(whole[i]);
  json header = json::parse(whole.substr(8, length));
  header.erase("__metadata__");
  const std::string text = header.dump();
  std::string out;
  for (size_t i = 0; i < 8; ++i) out += static_cast<char>(text.size() >> (8 * i) & 255);
  spill(to, out + text + whole.substr(8 + length));
}

}  // namespace

TEST_CASE("keyboard: unknown words are named, with the nearest right ones", "[cli]") {
  const Folder folder;
  told(folder, {"encod", "x"}, 2, {"'encod' is not a verb", "did you mean 'encode'?"});
  told(folder, {"sing"}, 2, {"'sing' is not a verb", "train, encode, decode"});
  told(folder, {}, 2, {"expected a verb: train", "--help"});
  told(folder, {"--"}, 2, {"expected a verb"});
  told(folder, {""}, 2, {"'' is not a verb"});
  told(folder, {"help", "trian"}, 2, {"'trian'", "did you mean 'train'?"});
  // A wrong option is reported before a missing one.
  told(folder, {"encode", "--modle", "y", "x"}, 2, {"'--modle' is not an option of encode", "did you mean '--model'?"});
  told(folder, {"train", "--frobnicate", "1"}, 2, {"'--frobnicate' is not an option of train"});
  told(folder, {"train", "--batchsize=3"}, 2, {"'--batchsize'", "'--batch-size'"});
  told(folder, {"encode", "-x"}, 2, {"'-x' is not an option of encode"});
  told(folder, {"encode", "x", "-fx"}, 2, {"'-x' is not an option of encode"});
  told(folder, {"encode", "x", "-force"}, 2, {"'-force'", "two dashes", "--force"});
  told(folder, {"--model", "m", "encode", "x"}, 2, {"'--model' is before the verb", "nacre encode --model"});
  told(folder, {"--modle", "m"}, 2, {"'--modle' is not an option of nacre"});
  told(folder, {"train", "data"}, 2, {"unexpected argument 'data'", "--data-dir"});
  told(folder, {"man", "page"}, 2, {"unexpected argument 'page'"});
  told(folder, {"completion", "tcsh"}, 2, {"'tcsh'", "bash, zsh or fish"});
  told(folder, {"completion", "bash", "zsh"}, 2, {"unexpected argument 'zsh' after 'bash'"});
  // All missing options are reported at once.
  told(folder, {"encode"}, 2, {"encode needs inputs, --output and --model", "nacre encode --help"});
  told(folder, {"eval", "-m", "x"}, 2, {"eval needs audio files, as inputs or by --data-dir"});
}

TEST_CASE("keyboard: values that options cannot have are told with what they can be", "[cli]") {
  const Folder folder;
  const Words head{"encode", "x", "-o", "y", "-m", "z"};
  const auto with = [&](Words more, const Words& parts) {
    more.insert(more.begin(), head.begin(), head.end());
    told(folder, more, 2, parts);
  };
  with({"--threads", "two"}, {"--threads is 'two'", "integer"});
  with({"--threads", "-1"}, {"--threads is '-1'", "0 to 1024"});
  with({"--threads", "1.5"}, {"'1.5'", "integer"});
  with({"--threads", "99999999999999999999"}, {"does not fit in 64 bits"});
  with({"--threads", " 1"}, {"integer"});
  with({"--beam", "0"}, {"--beam is '0'", "1 to 64"});
  with({"--device", "cudda"}, {"--device is 'cudda'", "auto, cpu, cuda or cuda:N", "did you mean 'cuda'?"});
  for (const char* bad : {"cuda:", "cuda:x", "cuda:N", "cuda:-1", "cuda:99999", "CUDA", "cuda0"})
    with({"--device", bad}, {"--device is '" + std::string(bad) + "'"});
  with({"--precision", "fp16"}, {"--precision is 'fp16'", "fp32, tf32 or bf16"});
  told(folder, {"report", "--run", "r", "--data-dir", "d", "--precision", "bf16"}, 2,
       {"--precision is 'bf16'", "fp32 or tf32"});
  with({"--model"}, {"--model needs a value"});
  with({"--threads"}, {"--threads needs a value"});
  with({"--threads", "--force"}, {"--threads needs a value", "'--force'"});
  with({"--threads="}, {"--threads was given an empty value"});
  with({"--force=yes"}, {"--force takes no value", "'yes'"});
  with({"--model", "other"}, {"--model is given twice", "'z'", "'other'"});
  with({""}, {"empty"});
  told(folder, {"eval", "x", "-m", "m", "--baseline", "opux"}, 2, {"--baseline is 'opux'", "opus"});
  told(folder, {"eval", "x", "-m", "m", "--valid-seconds", "nan"}, 2, {"--valid-seconds is 'nan'", "0 or more"});
  told(folder, {"report", "--run", "r", "--data-dir", "d", "--max-seconds", "0"}, 2,
       {"--max-seconds is '0'", "above 0"});
  told(folder, {"eval", "x", "-m", "m", "--valid-fraction", "0.5"}, 2,
       {"--valid-fraction has no effect without --held-out"});
  told(folder, {"info", "speech-16k", "--cost", "h20"}, 2, {"--cost is 'h20'", "h200"});
  // Long words are shortened.
  const Outcome o = run(folder, {std::string(100000, 'a')});
  CHECK(o.code == 2);
  CHECK(o.err.size() < 1000);
}

TEST_CASE("keyboard: help comes in every way that it is asked for", "[cli]") {
  const Folder folder;
  const std::string train = run(folder, {"train", "--help"}).out;
  CHECK_THAT(train, Catch::Contains("--checkpoint-dir") && Catch::Contains("Usage: nacre train"));
  for (const Words& words : std::vector<Words>{{"train", "-h"},
                                               {"train", "help"},
                                               {"help", "train"},
                                               {"--help", "train"},
                                               {"train", "--frobnicate", "-h"},
                                               {"train", "--data-dir", "--help"}}) {
    const Outcome o = run(folder, words);
    INFO(line_of(words));
    CHECK(o.code == 0);
    CHECK(o.err.empty());
    CHECK(o.out == train);
  }
  for (const Words& words : std::vector<Words>{{"help"}, {"-h"}, {"--help"}, {"help", "--help"}})
    CHECK_THAT(run(folder, words).out, Catch::Contains("Usage: nacre [OPTIONS] VERB"));
  // After "--", nothing is an option.
  CHECK(run(folder, {"info", "--", "--help"}).code == 4);
  // An option that is only one of several alternatives is not marked as required. A necessary option is.
  const std::string eval = run(folder, {"eval", "--help"}).out;
  for (const std::string part : {"inputs PATH REQUIRED", "--data_dir PATH REQUIRED", "[inputs...] REQUIRED"})
    CHECK_THAT(eval, !Catch::Contains(part));
  CHECK_THAT(eval, Catch::Contains("--model MODEL REQUIRED"));
}

TEST_CASE("keyboard: inputs may be called like verbs, options and lists", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  for (const char* name : {"train", "[a]", "++", "--help", "-q", "a=b"}) {
    INFO(name);
    write_voice(folder / (std::string(name) + ".wav"), 2000);
    fs::rename(folder / (std::string(name) + ".wav"), folder / name);
    const std::string command =
        std::string(NACRE_PROGRAM) + " encode -m model.safetensors -t 1 -q -o out.nacre -f -- \"" + name + "\"";
    CHECK(in_shell(folder, command) == 0);
    if (name[0] != '-')
      CHECK(in_shell(folder, std::string(NACRE_PROGRAM) + " encode \"" + name +
                                 "\" -m model.safetensors -t 1 -q -o out.nacre -f") == 0);
  }
}

TEST_CASE("keyboard: options that would do nothing are not offered", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  for (const char* option : {"--device", "--precision", "--threads"}) {
    const std::string value = std::string(option) == "--device"      ? "cpu"
                              : std::string(option) == "--precision" ? "fp32"
                                                                     : "1";
    told(folder, {"export", "-m", model, "-o", folder / "x.safetensors", option, value}, 2,
         {"is not an option of export"});
    told(folder, {"info", model, option, value}, 2, {option, "--memory"});
  }
  CHECK(run(folder, {"info", model, "--cost", "h200", "--precision", "bf16"}).code == 0);
  CHECK(run(folder, {"info", model, "--memory", "--device", "cpu", "--threads", "1"}).code == 0);
}

TEST_CASE("keyboard: settings are told with their range and where they came from", "[cli]") {
  const Folder folder;
  fs::create_directory(folder / "data");
  write_voice(folder / "data/a.wav", 4000);
  spill(folder / "c.json", small_config);
  const auto refused = [&](const std::string& config, Words more, int code, const Words& parts) {
    Words words{"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--config", config};
    words.insert(words.end(), more.begin(), more.end());
    told(folder, words, code, parts);
  };
  const std::string good = folder / "c.json";
  refused(good, {"--batch_size", "0"}, 2, {"--batch-size 0: ", "training.batch_size is 0, expected 1 to 65536"});
  refused(good, {"--set", "training.batch_size=0"}, 2, {"--set training.batch_size=0: ", "is 0, expected 1 to 65536"});
  refused(good, {"--seed", "3", "--set", "training.max_steps=-7"}, 2,
          {"--set training.max_steps=-7: ", "is -7, expected 0"});
  refused(good, {"--segment-length", "3"}, 2, {"--segment-length 3: ", "is 3, expected 4 (one hop"});
  refused(good, {"--learning-rate", "nan"}, 2, {"--learning-rate nan: ", "expected a number"});
  refused(good, {"--set", "training.batch_size=1.5"}, 2, {"is 1.5, expected an integer"});
  refused(good, {"--set", "codec.quantizer_dropout=1.5"}, 2, {"codec.quantizer_dropout is 1.5, expected 0 to 1"});
  refused(good, {"--set", "loss.mel=-1"}, 2, {"loss.mel is -1, expected 0 to 1e6"});
  refused(good, {"--set", "optimizer.eps=0"}, 2, {"optimizer.eps is 0, expected above 0"});
  refused(good, {"--set", "training.batch_size=18446744073709551615"}, 2,
          {"is 18446744073709551615, expected an integer"});
  refused(good, {"--set", "codec.encoder_dim=18446744073709551615"}, 2,
          {"is 18446744073709551615, expected an integer"});
  refused(good, {"--set", "codec.beam=1000"}, 2, {"codec.beam is 1000, expected 1 to 64"});
  spill(folder / "zero.json", R"({"training": {"batch_size": 0}})");
  refused(folder / "zero.json", {}, 2, {"zero.json: ", "training.batch_size is 0, expected 1 to 65536"});
  // Wrong names.
  refused(good, {"--set", "training.batchsize=3"}, 2,
          {"\"training.batchsize\"", "did you mean 'training.batch_size'?"});
  refused(good, {"--set", "trainin.batch_size=3"}, 2, {"\"trainin\"", "did you mean 'training'?"});
  refused(good, {"--set", "batch_size=3"}, 2, {"did you mean 'training.batch_size'?"});
  refused(good, {"--set", "codec.mels=[3]"}, 2, {"did you mean 'loss.mels'?"});
  refused(good, {"--set", "codec.zzzzzz=3"}, 2, {"\"codec.zzzzzz\" is unknown", "n_codebooks"});
  refused(good, {"--set", "codec.quantizer=emma"}, 2, {"\"emma\", expected ema or factorised", "did you mean 'ema'?"});
  refused(good, {"--set", "codec.activation=snak"}, 2, {"codec.activation is \"snak\"", "did you mean 'snake'?"});
  refused(good, {"--set", "training.schedule=cosin"}, 2, {"\"cosin\"", "did you mean 'cosine'?"});
  for (const char* out : {"../x", "a/../../x", "/tmp/x"})
    refused(good, {"--experiment-name", out}, 2,
            {"--experiment-name " + std::string(out), "is outside of the checkpoint folder"});
  refused(good, {"--set", "nonsense"}, 2, {"expected section.key=value"});
  refused("speach-16k", {}, 2, {"\"speach-16k\"", "did you mean 'speech-16k'?"});
  spill(folder / "key.json", R"({"codec": {"encoder_dmi": 8}})");
  refused(folder / "key.json", {}, 2, {"key.json: ", "\"codec.encoder_dmi\"", "did you mean 'codec.encoder_dim'?"});
  spill(folder / "twice.json", R"({"training": {"max_steps": 1, "max_steps": 2}})");
  refused(folder / "twice.json", {}, 2, {"twice.json: ", "\"max_steps\" appears twice"});
  // Two settings that are only valid together.
  CHECK(run(folder, {"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "both", "--config", good,
                     "--set", "codec.encoder_rates=[2,4]", "--set", "codec.decoder_rates=[4,2]"})
            .code == 0);
}

TEST_CASE("keyboard: a fault in a JSON file has a line and a column", "[cli]") {
  const Folder folder;
  const auto at = [&](const std::string& text, const std::string& place) {
    spill(folder / "bad.json", text);
    told(folder, {"info", folder / "bad.json"}, 2, {"bad.json: ", place + ":", "invalid JSON"});
  };
  at("{\"codec\": {\"encoder_dim\": 4},\n \"loss\": {\"mel\": 1,\n   }}", "line 3, column 4");
  at("{]", "line 1, column 2");
  at("{\"é\": }", "line 1, column 7");                 // characters, not bytes
  at("{\n\n\"a\": 1\n\"b\": 2}", "line 4, column 3");  // the end of the unexpected text
  at("{\"a\": 1", "line 1, column 8");
}

TEST_CASE("keyboard: what cannot be opened is exit code 4 for every verb and option", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 2000), none = folder / "none";
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-q"}).code == 0);
  fs::create_directory(folder / "data");
  write_voice(folder / "data/a.wav", 4000);
  spill(folder / "c.json", small_config);
  const std::string stream = folder / "s.nacre", out = folder / "out", data = folder / "data", runs = folder / "run",
                    config = folder / "c.json", long_name(5000, 'x');
  for (const std::string& missing : Words{none, none + ".json", none + "/below", folder / long_name, in + "/below"})
    for (const Words& words : std::vector<Words>{
             {"encode", missing, "-o", out, "-m", model},
             {"encode", in, "-o", out, "-m", missing},
             {"encode", in, "-o", missing + "/x/out.nacre", "-m", model},
             {"decode", missing, "-o", out, "-m", model},
             {"decode", stream, "-o", out, "-m", missing},
             {"eval", missing, "-m", model},
             {"eval", in, "-m", missing},
             {"eval", missing, "--held-out", "-m", model},
             {"info", missing},
             {"export", "-m", missing, "-o", out},
             {"export", "-m", model, "-o", missing + "/x/out.safetensors"},
             {"report", "--run", missing, "--data-dir", data, "-o", out},
             {"report", "--run", runs, "--data-dir", data, "-o", missing + "/x/page.html"},
             {"train", "--data_dir", missing, "--checkpoint_dir", runs, "--config", config},
             {"train", "--data_dir", data, "--noise-dir", missing, "--checkpoint_dir", runs, "--config", config},
             {"encode", in, "-o", out, "-m", model, "--config", missing + "/c"},
             {"train", "--data_dir", data, "--checkpoint_dir", runs, "--config", missing + "/c"}}) {
      INFO(line_of(words));
      const Outcome o = run(folder, words);
      INFO(o.err);
      CHECK(o.code == 4);
      CHECK(o.lines() == 1);
      CHECK_FALSE(fs::exists(out));
    }
  for (const char* option : {"--init", "--resume"}) {
    const Outcome o =
        run(folder, {"train", "--data_dir", data, "--checkpoint_dir", runs, "--config", config, option, none});
    CHECK(o.code == 4);
    CHECK(o.lines() == 1);
  }
  // A folder in place of a file, and a file in place of a folder.
  told(folder, {"export", "-m", model, "-o", "-"}, 2,
       {"-o -", "cannot be written to standard output", "expected a file name"});
  told(folder, {"report", "--run", runs, "--data-dir", data, "-o", "-"}, 2,
       {"-o -", "cannot be written to standard output", "expected a file name"});
  told(folder, {"train", "--data_dir", in, "--checkpoint_dir", runs, "--config", config}, 4, {"expected a folder"});
  told(folder, {"train", "--data_dir", data, "--noise_dir", in, "--checkpoint_dir", runs, "--config", config}, 4,
       {"expected a folder"});
  told(folder, {"train", "--data_dir", data, "--checkpoint_dir", runs, "--config", data}, 4,
       {"is a folder, expected a JSON file"});
  // One of several inputs fails; the others are done.
  CHECK(run(folder, {"info", in, none}).code == 3);
}

TEST_CASE("keyboard: a thing given where another belongs is called by its name", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 2000), out = folder / "out";
  REQUIRE(run(folder, {"encode", in, "-o", folder / "s.nacre", "-m", model, "-q"}).code == 0);
  fs::create_directories(folder / "data");
  write_voice(folder / "data/a.wav", 4000);
  spill(folder / "c.json", small_config);
  const std::string stream = folder / "s.nacre", config = folder / "c.json", runs = folder / "run",
                    data = folder / "data";
  REQUIRE(run(folder, {"train", "--data_dir", data, "--checkpoint_dir", runs, "--config", config}).code == 0);
  // The content decides, not the name.
  fs::copy(stream, folder / "stream.wav");
  fs::copy(in, folder / "audio.safetensors");

  told(folder, {"encode", stream, "-o", out, "-m", model}, 3, {"is a .nacre stream, expected audio", "nacre decode"});
  told(folder, {"encode", folder / "stream.wav", "-o", out, "-m", model}, 3, {"is a .nacre stream", "nacre decode"});
  told(folder, {"encode", model, "-o", out, "-m", model}, 3, {"is a model", "--model takes it"});
  told(folder, {"encode", config, "-o", out, "-m", model}, 3, {"is JSON", "--config"});
  told(folder, {"encode", runs, "-o", out, "-m", model}, 3, {"is a run of nacre train", "--model takes"});
  told(folder, {"encode", runs + "/step-00000001", "-o", out, "-m", model}, 3, {"is a checkpoint", "--model takes"});
  told(folder, {"eval", stream, "-m", model}, 3, {"is a .nacre stream", "nacre decode"});
  told(folder, {"decode", in, "-o", out, "-m", model}, 3,
       {"is an audio file, expected a .nacre stream", "nacre encode"});
  told(folder, {"decode", model, "-o", out, "-m", model}, 3, {"is a model", "--model takes it"});
  told(folder, {"decode", data, "-o", out, "-m", model}, 3, {"contains audio files", "nacre encode"});
  for (const char* verb : {"encode", "decode", "eval", "export"}) {
    Words words{verb, "-o", out};
    if (verb == std::string("eval")) words = {verb};
    if (verb != std::string("export")) words.push_back(verb == std::string("decode") ? stream : in);
    const auto with_model = [&](const std::string& given, const Words& parts) {
      Words all = words;
      all.insert(all.end(), {"-m", given});
      told(folder, all, 3, parts);
    };
    with_model(stream, {"is a .nacre stream, expected a model", "nacre decode"});
    with_model(folder / "audio.safetensors", {"is an audio file, expected a model", "nacre encode"});
    with_model(config, {"is JSON, expected a model", "--config"});
    with_model(data, {"no usable checkpoint", "contains audio files"});
  }
  told(folder, {"report", "--run", data, "--data-dir", data, "-o", out}, 3, {"is not a run", "log.jsonl"});
  told(folder, {"encode", in, "-o", out, "-m", "speech-16k"}, 4, {"is the name of a configuration"});
  told(folder, {"train", "--data_dir", runs, "--checkpoint_dir", folder / "r2", "--config", config}, 3,
       {"no audio files", "is a run"});
  told(folder, {"train", "--data_dir", data, "--checkpoint_dir", folder / "r2", "--config", model}, 2,
       {"is a model", "expected a configuration"});
  told(folder, {"train", "--data_dir", data, "--checkpoint_dir", folder / "r2", "--config", in}, 2,
       {"is an audio file"});
  // Through a pipe.
  Outcome o = run(folder, {"encode", "-", "-o", out, "-m", model}, stream);
  CHECK(o.code == 3);
  CHECK_THAT(o.err, Catch::Contains("standard input: is a .nacre stream"));
  o = run(folder, {"decode", "-", "-o", out, "-m", model}, in);
  CHECK(o.code == 3);
  CHECK_THAT(o.err, Catch::Contains("standard input: is an audio file"));
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("keyboard: --json is one object on standard output", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 8000, 16000, 2),
                    stream = folder / "s.nacre";
  fs::create_directories(folder / "data");
  write_voice(folder / "data/a.wav", 4000);
  spill(folder / "c.json", small_config);
  const auto object = [&](const Words& words, int code = 0, const std::string& input = "/dev/null") {
    const Outcome o = run(folder, words, input);
    INFO(line_of(words));
    INFO(o.err);
    CHECK(o.code == code);
    const json all = json::parse(o.out, nullptr, false);
    REQUIRE(all.is_object());
    return all;
  };
  json j = object({"encode", in, "-o", stream, "-m", model, "--json"});
  CHECK(j["failed"] == 0);
  CHECK(j["files"][0]["input"] == in);
  CHECK(j["files"][0]["output"] == stream);
  CHECK(j["files"][0]["samples"] == 8000);
  CHECK(j["files"][0]["channels"] == 2);
  CHECK(j["files"][0]["seconds"] == 0.5);
  CHECK(j["files"][0]["stream_bytes"] == fs::file_size(stream));
  j = object({"encode", in, folder / "none.wav", "-o", folder / "codes", "-m", model, "--json"}, 3);
  CHECK(j["failed"] == 1);
  CHECK(j["files"].size() == 1);
  j = object({"encode", folder / "none.wav", "-o", folder / "x.nacre", "-m", model, "--json"}, 4);
  CHECK(j["failed"] == 1);
  CHECK(j["files"].empty());
  told(folder, {"encode", in, "-o", "-", "-m", model, "--json"}, 2, {"--json", "standard output"});
  j = object({"decode", stream, "-o", folder / "back.wav", "-m", model, "--json"});
  CHECK(j["files"][0]["samples"] == 8000);
  CHECK(j["files"][0]["clipped"].is_number());
  j = object({"export", "-m", model, "-o", folder / "copy.safetensors", "--json"});
  CHECK(j["bytes"] == fs::file_size(folder / "copy.safetensors"));
  const std::string identity = j["identity"];
  j = object({"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run", "--config", folder / "c.json",
              "--json"});
  CHECK(j["step"] == 1);
  CHECK(j["finished"] == true);
  CHECK_FALSE(j.contains("signal"));
  CHECK(j["checkpoint"] == (folder / "run/step-00000001").string());
  // Every kind of input that info accepts.
  j = object({"info", "--json", "speech-16k-small", folder / "c.json", model, folder / "run",
              folder / "run/step-00000001", stream, in});
  CHECK(j["failed"] == 0);
  const char* kinds[] = {"configuration", "configuration", "model", "run", "checkpoint", "stream", "audio"};
  REQUIRE(j["inputs"].size() == std::size(kinds));
  for (size_t i = 0; i < std::size(kinds); ++i) CHECK(j["inputs"][i]["kind"] == kinds[i]);
  CHECK(j["inputs"][0]["nominal_bitrate"] == 32000);
  // 13 frames of 40 samples: the encoder's receptive field.
  CHECK(j["inputs"][0]["streaming"]["encode"]["lookahead"] == 520);
  CHECK(j["inputs"][0]["streaming"]["encode"]["block"] == 40);
  CHECK(j["inputs"][2]["streaming"].contains("decode"));
  CHECK(j["inputs"][2]["identity"] == identity);
  CHECK(j["inputs"][3]["checkpoints"].back()["step"] == 1);
  CHECK(j["inputs"][5]["samples"] == 8000);
  CHECK(j["inputs"][5]["identity"] == identity);
  CHECK(j["inputs"][6]["channels"] == 2);
  j = object({"info", "--json", "--devices", "--configs"});
  CHECK(j["devices"]["cpu"]["threads"].is_number());
  CHECK(j["configurations"].size() == 13);
  j = object({"info", "--json", "--systems"});
  REQUIRE(j["systems"].size() == 13);
  std::map<std::string, nlohmann::json> systems;
  for (const auto& s : j["systems"]) systems[s["name"]] = s;
  CHECK(systems["dac-44k"]["formats"] == std::vector<std::string>{"hf", "descript"});
  CHECK(systems["encodec-48k"]["formats"] == std::vector<std::string>{"hf", "encodec"});
  CHECK(systems["soundstream-16k"]["formats"] == std::vector<std::string>{"audiolm"});
  CHECK(systems["soundstream-24k"]["formats"].empty());
  CHECK(systems["encodec-48k"]["latency"] == 1);
  CHECK(systems["encodec-48k"]["causal"] == false);
  CHECK(systems["encodec-24k"]["causal"] == true);
  CHECK(systems["encodec-24k"]["latency"].get<double>() == Approx(320.0 / 24000));
  CHECK(systems["encodec-24k"]["encoder_macs"].get<double>() == Approx(1.490e9).epsilon(1e-3));
  CHECK(systems["ldcodec-16k"]["bitrate"] == 6000);
  CHECK(systems["ldcodec-16k"]["causal"] == false);
  CHECK(systems["ldcodec-16k"]["decoder_macs"] < systems["ldcodec-16k"]["decoder_macs_profiled"]);
  CHECK(systems["ldcodec-16k"]["decoder_macs_profiled"] <= 0.26e9);
  j = object({"info", "--json", model, "--memory", "--cost", "h200"});
  CHECK(j["inputs"][0]["memory"]["training_step"]["bytes"].is_number());
  CHECK(j["inputs"][0]["cost"]["seconds"] > 0);
  j = object({"info", "--json", in, folder / "none"}, 3);
  CHECK(j["failed"] == 1);
  CHECK(j["inputs"].size() == 1);
  // Standard input.
  j = object({"info", "-", "--json"}, 0, stream);
  CHECK(j["inputs"][0]["kind"] == "stream");
  CHECK(j["inputs"][0]["samples"] == 8000);
  j = object({"info", "-", "--json"}, 0, in);
  CHECK(j["inputs"][0]["kind"] == "audio");
  CHECK(in_shell(folder, "cat in.wav | " NACRE_PROGRAM " info - | grep -q \"standard input: audio\"") == 0);
  CHECK(run(folder, {"info", "-"}, model).code == 3);
  CHECK(run(folder, {"info", "-", "-"}, in).code == 2);
}

TEST_CASE("keyboard: --config gives a model file the configuration that it lacks", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 4000),
                    bare = folder / "bare.safetensors";
  write_bare(model, bare);
  spill(folder / "c.json", "{\"codec\": " + tiny_config().to_json() + "}");
  const std::string config = folder / "c.json";
  told(folder, {"encode", in, "-o", folder / "a.nacre", "-m", bare}, 3, {"bare.safetensors", "--config"});
  const auto done = [&](const Words& words) {
    const Outcome o = run(folder, words);
    INFO(line_of(words));
    INFO(o.err);
    CHECK(o.code == 0);
  };
  done({"encode", in, "-o", folder / "a.nacre", "-m", bare, "--config", config});
  done({"encode", in, "-o", folder / "b.nacre", "-m", model});
  CHECK(slurp(folder / "a.nacre") == slurp(folder / "b.nacre"));
  done({"decode", folder / "a.nacre", "-o", folder / "a.wav", "-m", bare, "--config", config});
  done({"eval", in, "-m", bare, "--config", config});
  done({"info", bare, "--config", config});
  done({"export", "-m", bare, "--config", config, "-o", folder / "whole.safetensors"});
  done({"info", folder / "whole.safetensors"});
  // A configuration that does not fit, and one that is not needed.
  told(folder, {"info", bare, "--config", "speech-16k-small"}, 3, {"does not fit the model"});
  told(folder, {"info", model, "--config", config}, 2, {"contains its own configuration", "omit --config"});
}

TEST_CASE("keyboard: control characters in names do not reach the terminal", "[cli]") {
  const Folder folder;
  const std::string name =
                        "a\x1b]0;owned\x07\nb \xc2\x9b"
                        "31mé.wav",
                    shown = "a\\x1b]0;owned\\x07\\x0ab \\xc2\\x9b31mé.wav";
  const std::string model = tiny_model(folder), in = write_voice(folder / name, 4000);
  fs::create_directory(folder / "data");
  fs::copy(in, folder / "data" / name);
  write_voice(folder / "data/b.wav", 4000);
  spill(folder / "data" / ("bad\x1b\n.wav"), "nothing");
  spill(folder / "c.json", small_config);
  fs::create_directory(folder / "run\x1b\n");
  const auto clean = [&](const Words& words, int code, const std::string& part) {
    const Outcome o = run(folder, words);
    INFO(o.err << o.out);
    CHECK(o.code == code);
    for (const std::string& text : {o.out, o.err}) {
      for (const char c : text) CHECK((static_cast<unsigned char>(c) >= 0x20 || c == '\n'));
      CHECK(text.find("\xc2\x9b") == std::string::npos);
    }
    CHECK_THAT(o.out + o.err, Catch::Contains(part));
  };
  clean({"encode", in, "-o", folder / "s.nacre", "-m", model}, 0, shown);
  clean({"encode", in, in + "x", "-o", folder / "codes", "-m", model}, 3, shown + "x: cannot open");
  clean({"decode", in, "-o", folder / "x.wav", "-m", model}, 3, shown);
  clean({"eval", in, "-m", model}, 0, shown);
  clean({"info", in}, 0, shown);
  clean({"info", in + "x"}, 4, shown);
  clean({"info", in, "--json"}, 0, "audio");
  clean({"export", "-m", model, "-o", folder / "run\x1b\n/m.safetensors"}, 0, "run\\x1b\\x0a/m.safetensors");
  clean({"encode", in, "-o", folder / "t.nacre", "-m", in}, 3, shown);
  clean({"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "run\x1b\n", "--config",
         folder / "c.json", "--max-bad", "5", "--use_wandb"},
        0, "bad\\x1b\\x0a.wav");
  clean({"train", "--data_dir", folder / "data", "--checkpoint_dir", folder / "r2", "--config", folder / "c.json",
         "--max-bad", "0"},
        3, "bad\\x1b\\x0a.wav");
  clean({"\x1b[2J"}, 2, "'\\x1b[2J' is not a verb");
}

TEST_CASE("keyboard: the command that uploads logs can be pasted", "[cli]") {
  const Folder folder;
  fs::create_directory(folder / "data");
  write_voice(folder / "data/a.wav", 4000);
  spill(folder / "c.json", small_config);
  const std::string runs = folder / "it's my run";
  const Outcome o = run(folder, {"train", "--data_dir", folder / "data", "--checkpoint_dir", runs, "--config",
                                 folder / "c.json", "--use_wandb"});
  REQUIRE(o.code == 0);
  const size_t at = o.out.find("wandb sync");
  REQUIRE(at != std::string::npos);
  // A shell that reads the line passes the folder as one word.
  spill(folder / "paste.sh", "wandb() { printf \"%s\" \"${@: -1}\" >got; }\n" + o.out.substr(at));
  REQUIRE(in_shell(folder, "bash paste.sh") == 0);
  CHECK(slurp(folder / "got") == runs);
}

TEST_CASE("keyboard: output that cannot be written is told, and closed streams do no harm", "[cli]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 4000);
  const std::string nacre = NACRE_PROGRAM;
  if (::access("/dev/full", W_OK) == 0)
    for (const std::string verb :
         {"info in.wav", "info in.wav --json", "--help", "--version", "train --help", "man", "completion bash",
          "info --configs", "eval in.wav -m model.safetensors -t 1", "eval in.wav -m model.safetensors -t 1 --json",
          "encode in.wav -m model.safetensors -t 1 -o - -q"}) {
      INFO(verb);
      CHECK(in_shell(folder, nacre + " " + verb + " >/dev/full") == 4);
      CHECK_THAT(slurp(folder / "shell.err"), Catch::Contains("cannot write"));
    }
  // If a standard stream is closed, the output file must not take its descriptor, and messages must not go into the
  // file.
  REQUIRE(in_shell(folder, nacre + " encode in.wav -m model.safetensors -t 1 -o good.nacre -q") == 0);
  const std::string good = slurp(folder / "good.nacre");
  for (const std::string closed : {"<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"}) {
    INFO(closed);
    CHECK(in_shell(folder, nacre + " encode in.wav -m model.safetensors -t 1 -f -o out.nacre " + closed) == 0);
    CHECK(slurp(folder / "out.nacre") == good);
  }
  CHECK(in_shell(folder, nacre + " info in.wav >&-") == 4);
  CHECK(in_shell(folder, nacre + " encode - -m model.safetensors -t 1 -f -o out.nacre <&-") == 4);
}
