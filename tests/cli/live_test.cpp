// nacre encode and nacre decode while the signal arrives. No test measures time: samples that must come before more are
// given are waited for, and a program that kept them back would let the test fail by the limit of the wait.
#include <poll.h>
#include <sndfile.h>

#include "cli/program.h"
#include "cli/shell.h"
#include "nacre/codec/streaming.h"
#include "nacre/coding/codec_files.h"

using namespace nacre;
using namespace nacre::test;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

/// Longer than any machine needs for a few packets.
constexpr int wait_ms = 120000;

/// A pipe. In packet mode each write is read by a call of its own, so the reader sees the cuts of the writer.
struct Pipe {
  explicit Pipe(bool packets = false) {
    int fds[2];
    REQUIRE(::pipe2(fds, O_CLOEXEC | (packets ? O_DIRECT : 0)) == 0);
    from = fds[0], to = fds[1];
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() { close_from(), close_to(); }
  void close_from() {
    if (from >= 0) ::close(from);
    from = -1;
  }
  void close_to() {
    if (to >= 0) ::close(to);
    to = -1;
  }
  void write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = ::write(to, bytes.data(), bytes.size());
      REQUIRE(n > 0);
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  /// Exactly n bytes, or fewer at the end. Fails if nothing comes.
  std::string read(size_t n) const {
    std::string out(n, '\0');
    size_t have = 0;
    while (have < n) {
      pollfd p{.fd = from, .events = POLLIN, .revents = 0};
      REQUIRE(::poll(&p, 1, wait_ms) == 1);
      const ssize_t got = ::read(from, out.data() + have, n - have);
      REQUIRE(got >= 0);
      if (got == 0) break;
      have += static_cast<size_t>(got);
    }
    out.resize(have);
    return out;
  }
  std::string rest() const {
    std::string all;
    for (;;) {
      const std::string more = read(1 << 12);
      all += more;
      if (more.size() < 1 << 12) return all;
    }
  }
  int from = -1, to = -1;
};

/// Starts the program between two pipes, and another process writes `input` in pieces, if there is any.
Outcome piped(const Folder& folder, const Words& words, std::string_view input,
              const std::vector<size_t>& pieces = {}) {
  Pipe in(!pieces.empty());
  const std::string name = "/proc/self/fd/" + std::to_string(in.from);
  Running program(folder, words, name);
  in.close_from();
  const pid_t writer = ::fork();
  REQUIRE(writer >= 0);
  if (writer == 0) {
    ::signal(SIGPIPE, SIG_DFL);
    for (size_t i = 0; !input.empty(); ++i) {
      const size_t n = std::min(input.size(), pieces.empty() ? size_t{4096} : pieces[i % pieces.size()]);
      const ssize_t done = ::write(in.to, input.data(), n);
      if (done < 0) _exit(1);
      input.remove_prefix(static_cast<size_t>(done));
    }
    _exit(0);
  }
  in.close_to();
  const Outcome o = program.wait();
  int status = 0;
  REQUIRE(::waitpid(writer, &status, 0) == writer);
  return o;
}

std::string bytes_of_samples(std::span<const int16_t> x) {
  return {reinterpret_cast<const char*>(x.data()), 2 * x.size()};
}
std::vector<int16_t> voice16(int64_t frames, int rate, int channels = 1) {
  int64_t clipped = 0;
  std::vector<int16_t> out;
  for (const float v : voice(frames, rate, channels)) out.push_back(training::to_pcm16(v, clipped));
  return out;
}
std::string endless_header(int rate, int channels = 1) {
  return training::wav_header(rate, channels, training::WavFormat::pcm16);
}
std::string as_wav(std::span<const int16_t> x, int rate, int channels = 1) {
  return training::wav_header(rate, channels, training::WavFormat::pcm16, static_cast<int64_t>(x.size()) / channels) +
         bytes_of_samples(x);
}

/// Samples of results after `given` samples, as StreamingLatency says: those of whole blocks, less the lookahead.
int64_t delivered(const StreamingLatency& l, int64_t given) {
  const int64_t first = std::max(l.start, l.block);
  if (given < first) return 0;
  return std::max<int64_t>(0, first + (given - first) / l.block * l.block - l.lookahead);
}

float largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  float most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
  return most;
}

CodecConfig causal_config() {
  CodecConfig c = CodecConfig::named("encodec-24k");
  c.sample_rate = 16000;
  c.encoder_dim = 2, c.decoder_dim = 8, c.encoder_rates = {2, 4}, c.decoder_rates = {4, 2};
  c.latent_dim = 8, c.n_codebooks = 2, c.codebook_size = 16, c.codebooks_drawn = {1, 2};
  return c;
}

/// A refusal: this exit code, one line with these words, and nothing left in the folder but `files` entries.
void refused(const Folder& folder, const Outcome& o, int code, const std::string& words) {
  INFO(o.err);
  CHECK(o.code == code);
  CHECK(o.lines() == 1);
  CHECK(o.err.find(words) != std::string::npos);
  for (const auto& entry : fs::directory_iterator(folder.path()))
    CHECK(entry.path().filename().string().find(".nacre-") == std::string::npos);
}

}  // namespace

TEST_CASE("live: encode and decode give samples as soon as their delays allow", "[cli][live]") {
  struct Case {
    CodecConfig config;
    int64_t block;
    Words options;
  };
  const std::vector<Case> cases{{tiny_config(), 1, {"--no-normalise"}},
                                {causal_config(), 1, {"--gain", "0.5"}},
                                {tiny_config(), 5, {"--gain", "1", "--block", "5"}}};
  for (const Case& c : cases) {
    INFO(c.config.network << ", blocks of " << c.block);
    const Folder folder;
    const std::string model = tiny_model(folder, "model.safetensors", 1, c.config);
    const StreamingLatency encoding = encoding_latency(c.config, c.block),
                           decoding = decoding_latency(c.config, c.block);
    const int64_t hop = c.config.hop();
    Words encode{"encode", "-", "-o", "-", "-m", model, "-q"};
    encode.insert(encode.end(), c.options.begin(), c.options.end());

    const std::vector<int16_t> x = voice16(6000, 16000);
    Pipe in, between, out;
    const auto self = [](int fd) { return "/proc/self/fd/" + std::to_string(fd); };
    Running encoder(folder, encode, self(in.from), self(between.to));
    Running decoder(folder, {"decode", "-", "-o", "-", "-m", model, "-q"}, self(between.from), self(out.to));
    in.close_from(), between.close_from(), between.close_to(), out.close_to();

    in.write(endless_header(16000).substr(0, 7));
    in.write(endless_header(16000).substr(7));
    // The stream's header comes before any sample, and so does that of the WAV file with the first packet.
    int64_t given = 0, got = 0;
    std::string heard;
    for (const int64_t piece : {1, 7, 300, 2, 1000, 77, 3000, 1, 1, 1, 8, 64}) {
      in.write(bytes_of_samples(std::span(x).subspan(static_cast<size_t>(given), static_cast<size_t>(piece))));
      given += piece;
      // As far as the decoder knows, the end of the last frame may be padding.
      const int64_t held = std::max<int64_t>(0, hop - 1 - decoding.lookahead);
      const int64_t now = delivered(decoding, delivered(encoding, given)) - held;
      INFO("after " << given << " samples " << now);
      if (now <= got) continue;
      if (got == 0) CHECK(out.read(44) == endless_header(16000));
      const std::string more = out.read(static_cast<size_t>(2 * (now - got)));
      REQUIRE(more.size() == static_cast<size_t>(2 * (now - got)));
      heard += more;
      got = now;
    }
    REQUIRE(got > 3000);
    in.close_to();
    heard += out.rest();
    CHECK(encoder.wait().code == 0);
    CHECK(decoder.wait().code == 0);
    // All samples come back.
    CHECK(heard.size() == static_cast<size_t>(2 * given));
  }
}

TEST_CASE("live: the cuts of the input change no byte", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  for (const auto& [rate, channels] : {std::pair{16000, 1}, std::pair{22050, 2}}) {
    INFO(rate << " Hz");
    const std::string input = endless_header(rate, channels) + bytes_of_samples(voice16(3001, rate, channels));
    const Words encode{"encode", "-", "-o", "-", "-m", model, "-q", "--gain", "0.75"};
    spill(folder / "in.wav", input);
    const Outcome whole = run(folder, encode, folder / "in.wav");
    INFO(whole.err);
    REQUIRE(whole.code == 0);
    REQUIRE(whole.out.size() > 3001 / 8 * 17);
    for (const std::vector<size_t>& pieces : {std::vector<size_t>{1}, {3, 50, 1, 700}, {4095}})
      CHECK((piped(folder, encode, input, pieces).out == whole.out));
    // The decoder reads packets; cuts within them change nothing.
    const Words decode{"decode", "-", "-o", "-", "-m", model, "-q", "--float"};
    spill(folder / "s.nacre", whole.out);
    const std::string heard = run(folder, decode, folder / "s.nacre").out;
    REQUIRE(heard.size() == 44 + 4 * static_cast<size_t>(3001 * channels));
    // A read of less than a packet of the pipe would lose the rest of it, so these packets are single bytes.
    CHECK((piped(folder, decode, whole.out, {1}).out == heard));
  }
}

TEST_CASE("live: the stream is a .nacre file, and decodes to the same audio there", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  for (const auto& [rate, channels, block] : {std::tuple{16000, 1, 1}, std::tuple{44100, 2, 3}}) {
    INFO(rate << " Hz, " << channels << " channels, blocks of " << block);
    // Factors of two change no bit of a mantissa, so the level comes back exactly where the codec is linear; here it
    // shows that the gain is undone.
    const std::vector<int16_t> x = voice16(5003, rate, channels);
    Outcome o = piped(folder,
                      {"encode", "-", "-o", folder / "s.nacre", "-m", model, "-q", "-f", "--gain", "4", "--block",
                       std::to_string(block)},
                      endless_header(rate, channels) + bytes_of_samples(x));
    INFO(o.err);
    REQUIRE(o.code == 0);
    CHECK(o.err.empty());
    const training::StreamFacts facts = training::check_stream(folder / "s.nacre");
    CHECK(facts.header.gain == 0.25f);
    CHECK(facts.header.samples == StreamHeader::unknown);
    CHECK(facts.header.packet_frames == static_cast<uint32_t>(block));
    CHECK(facts.samples == 5003);
    CHECK(run(folder, {"info", folder / "s.nacre"}).code == 0);
    for (const Words& extra : {Words{}, Words{"--model-rate"}, Words{"--n-codebooks", "1"}}) {
      Words file{"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", model, "-q", "-f"};
      Words live{"decode", "-", "-o", "-", "-m", model, "-q"};
      file.insert(file.end(), extra.begin(), extra.end());
      live.insert(live.end(), extra.begin(), extra.end());
      REQUIRE(run(folder, file).code == 0);
      o = run(folder, live, folder / "s.nacre");
      INFO(o.err);
      REQUIRE(o.code == 0);
      const bool at_model = extra == Words{"--model-rate"};
      CHECK(o.out.substr(0, 44) == endless_header(at_model ? 16000 : rate, channels));
      spill(folder / "live.wav", o.out);
      // Rounding in sums of another order moves a sample by at most one step, 2^-15.
      const auto live_samples = training::read_audio(folder / "live.wav").samples,
                 file_samples = training::read_audio(folder / "out.wav").samples;
      CHECK(largest_difference(live_samples, file_samples) <= 0x1p-15f);
      CHECK(training::read_audio(folder / "live.wav").frames() ==
            training::resampled_frames(5003, rate, at_model ? 16000 : rate));
    }
  }
}

TEST_CASE("live: a length in the header of the audio reaches the header of the decoded audio", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  const std::vector<int16_t> x = voice16(2005, 16000);
  // Chunks behind the samples are read, so that the writer does not fail.
  const std::string wav =
      as_wav(x, 16000) + std::string("LIST\x10\0\0\0INFOISFT\4\0\0\0test", 24) + std::string(200000, '\0');
  const Outcome coded = piped(folder, {"encode", "-", "-o", "-", "-m", model, "-q", "--gain", "1"}, wav);
  INFO(coded.err);
  REQUIRE(coded.code == 0);
  spill(folder / "s.nacre", coded.out);
  CHECK(training::check_stream(folder / "s.nacre").header.samples == 2005);
  for (const Words& kind : {Words{}, Words{"--float"}}) {
    Words file{"decode", folder / "s.nacre", "-o", folder / "out.wav", "-m", model, "-q", "-f"};
    Words live{"decode", "-", "-o", "-", "-m", model, "-q"};
    file.insert(file.end(), kind.begin(), kind.end());
    live.insert(live.end(), kind.begin(), kind.end());
    REQUIRE(run(folder, file).code == 0);
    const std::string whole = slurp(folder / "out.wav"), heard = run(folder, live, folder / "s.nacre").out;
    if (kind.empty()) {
      CHECK(heard.size() == whole.size());
      CHECK(heard.substr(0, 44) == whole.substr(0, 44));
    }
    spill(folder / "heard.wav", heard);
    CHECK(training::read_audio(folder / "heard.wav").frames() == 2005);
  }
  // A pipe with a name, and output to a file.
  REQUIRE(::mkfifo((folder / "pipe.wav").c_str(), 0600) == 0);
  Running encoder(folder, {"encode", folder / "pipe.wav", "-o", folder / "f.nacre", "-m", model, "-q", "--gain", "1"});
  {
    Pipe none;
    ::close(none.to);
    none.to = ::open((folder / "pipe.wav").c_str(), O_WRONLY);
    none.write(wav.substr(0, 1000));
    CHECK_FALSE(fs::exists(folder / "f.nacre"));
    none.write(wav.substr(1000));
  }
  CHECK(encoder.wait().code == 0);
  CHECK(slurp(folder / "f.nacre") == coded.out);
}

TEST_CASE("live: a factor in place of the peak, for files", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  const auto encoded = [&](float factor, const Words& options) {
    std::vector<float> x = voice(4000, 16000);
    for (float& v : x) v *= factor;
    training::write_wav(folder / "in.wav", {.samples = x, .sample_rate = 16000}, training::WavFormat::float32);
    Words all{"encode", folder / "in.wav", "-o", folder / "s.nacre", "-m", model, "-q", "-f"};
    all.insert(all.end(), options.begin(), options.end());
    const Outcome o = run(folder, all);
    INFO(o.err);
    REQUIRE(o.code == 0);
    return training::check_stream(folder / "s.nacre").header.gain;
  };
  CHECK(encoded(1, {"--no-normalise"}) == 1);
  const std::string plain = slurp(folder / "s.nacre");
  CHECK(encoded(1, {"--no_normalize"}) == 1);
  CHECK(encoded(1, {"--gain", "1"}) == 1);
  CHECK(slurp(folder / "s.nacre") == plain);
  // A power of two is exact, so the codes are equal; the headers and the CRCs that continue from them are not.
  CHECK(encoded(4, {"--gain=0.25"}) == 4);
  REQUIRE(run(folder, {"decode", folder / "s.nacre", "-o", folder / "loud.wav", "-m", model, "--float"}).code == 0);
  CHECK(encoded(1, {"--no-normalise"}) == 1);
  REQUIRE(run(folder, {"decode", folder / "s.nacre", "-o", folder / "plain.wav", "-m", model, "--float"}).code == 0);
  std::vector<float> expected = training::read_audio(folder / "plain.wav").samples;
  for (float& v : expected) v *= 4;
  CHECK((training::read_audio(folder / "loud.wav").samples == expected));
  CHECK(encoded(1, {}) != 1);

  // The same for samples that arrive.
  const auto heard = [&](const std::vector<int16_t>& x, const std::string& gain) {
    spill(folder / "live.wav", endless_header(16000) + bytes_of_samples(x));
    const Outcome o = run(folder, {"encode", "-", "-o", "-", "-m", model, "-q", "--gain", gain}, folder / "live.wav");
    REQUIRE(o.code == 0);
    spill(folder / "live.nacre", o.out);
    REQUIRE(run(folder,
                {"decode", folder / "live.nacre", "-o", folder / "live.out.wav", "-m", model, "-q", "-f", "--float"})
                .code == 0);
    return training::read_audio(folder / "live.out.wav").samples;
  };
  std::vector<int16_t> soft = voice16(2000, 16000);
  for (int16_t& v : soft) v = static_cast<int16_t>(v / 16);
  std::vector<int16_t> loud = soft;
  for (int16_t& v : loud) v = static_cast<int16_t>(v * 16);
  expected = heard(soft, "16");
  for (float& v : expected) v *= 16;
  CHECK((heard(loud, "1") == expected));
}

TEST_CASE("live: what cannot be encoded is refused in one line", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 3000);
  const std::string wav = slurp(in);
  const auto encode = [&](const std::string& input, Words more, const std::string& from = "-") {
    spill(folder / "input", input);
    Words words{"encode", from, "-o", folder / "out.nacre", "-m", model};
    words.insert(words.end(), more.begin(), more.end());
    return run(folder, words, folder / "input");
  };
  const Words live{"--gain", "1"};
  // Options.
  for (const char* bad : {"1e13", "1e-13", "1e300", "inf"})
    refused(folder, encode(wav, {"--gain", bad}), 2, "2^-40 to 2^40");
  for (const char* bad : {"0", "-1", "nan", "x"}) refused(folder, encode(wav, {"--gain", bad}), 2, "--gain is");
  refused(folder, encode(wav, {"--gain", "2", "--no-normalise"}), 2, "exclude each other");
  refused(folder, encode(wav, {"--block", "2"}), 2, "--block has no effect without --gain");
  refused(folder, encode(wav, {"--gain", "1", "--block", "2"}, in), 2, "has no effect on a file");
  refused(folder, encode(wav, {"--gain", "1", "--block", "0"}), 2, "1 to 65536");
  refused(folder, encode(wav, {"--gain", "1", "--block", "65537"}), 2, "1 to 65536");
  // Inputs.
  refused(folder, encode("", live), 3, "standard input: empty");
  refused(folder, encode(wav.substr(0, 30), live), 3, "before its audio begins");
  refused(folder, encode(wav.substr(0, 44), live), 3, "empty: it contains no audio");
  refused(folder, encode(endless_header(16000), live), 3, "empty: it contains no audio");
  refused(folder, encode(wav.substr(0, 2001), live), 3, "declares 3000 frames, 978 are there; --salvage");
  refused(folder, encode("Call me Ishmael. Some years ago, never mind how long precisely", live), 3, "ffmpeg");
  refused(folder, encode("fLaC" + std::string(100, '\0'), live), 3, "is not WAV");
  refused(folder, encode("OggS" + std::string(100, '\0'), live), 3, "temporary file");
  refused(folder, encode("\x89NACRE\r\n" + std::string(100, '\0'), live), 3, "is a .nacre stream, expected audio");
  refused(folder, encode(slurp(model), live), 3, "is a model");
  refused(folder, encode(endless_header(100) + wav.substr(44), live), 3, "sample rate is 100");
  refused(folder, encode(endless_header(16000, 65) + wav.substr(44), live), 3, "65");
  std::string text = "RIFF\xff\xff\xff\xffWAVEfmt \x10" + wav.substr(17, 19) + "junk";
  text += std::string("\0\0\x20\0", 4) + std::string(3 << 20, '\0');
  refused(folder, encode(text, live), 3, "header is longer than 1048576 bytes");
  std::string nan = training::wav_header(16000, 1, training::WavFormat::float32) + std::string(400, '\0');
  nan[44 + 4 * 70 + 2] = '\xc0', nan[44 + 4 * 70 + 3] = '\x7f';
  refused(folder, encode(nan, live), 3, "not a finite number at frame 70");
  nan.replace(44 + 4 * 70, 4, std::string("\xfa\x02\x15\x50", 4));  // 1e10 and a little
  refused(folder, encode(nan, live), 3, "sample out of range");
  SF_INFO info{};
  info.samplerate = 16000, info.channels = 1, info.format = SF_FORMAT_WAV | SF_FORMAT_IMA_ADPCM;
  SNDFILE* f = sf_open((folder / "adpcm.wav").c_str(), SFM_WRITE, &info);
  REQUIRE(f != nullptr);
  const std::vector<int16_t> x = voice16(3000, 16000);
  sf_write_short(f, x.data(), 3000);
  sf_close(f);
  refused(folder, encode(slurp(folder / "adpcm.wav"), live), 3, "compressed in blocks");
  // Without the option they are copied first, and read.
  CHECK(encode(slurp(folder / "adpcm.wav"), {"-q"}).code == 0);
  fs::remove(folder / "out.nacre");
  // The part that is there.
  const Outcome o = encode(wav.substr(0, 2001), {"--gain", "1", "--salvage", "-q"});
  CHECK(o.code == 0);
  CHECK(o.lines() == 1);
  CHECK(training::check_stream(folder / "out.nacre").samples == 978);
  fs::remove(folder / "out.nacre");
  refused(folder, run(folder, {"encode", in, "-o", folder / "out.ecdc", "-m", model, "--gain", "1"}), 2, "ecdc");
  // A model whose frames depend on the whole signal.
  CodecConfig whole = causal_config();
  whole.norm = Norm::group;
  const std::string slow = tiny_model(folder, "whole.safetensors", 1, whole);
  refused(folder, run(folder, {"encode", "-", "-o", folder / "out.nacre", "-m", slow, "--gain", "1"}, in), 2,
          "needs the whole signal");
  CHECK(run(folder, {"encode", in, "-o", folder / "whole.nacre", "-m", slow, "--gain", "1", "-q"}).code == 0);
  const Outcome spooled = run(folder, {"decode", "-", "-o", "-", "-m", slow, "-q"}, folder / "whole.nacre");
  CHECK(spooled.code == 0);
  CHECK(spooled.out.size() == 44 + 6000);
  CHECK_FALSE(fs::exists(folder / "out.nacre"));
}

TEST_CASE("live: a stream that is damaged stops the decoder behind what it has written", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder), in = write_voice(folder / "in.wav", 3000);
  REQUIRE(run(folder, {"encode", "-", "-o", folder / "s.nacre", "-m", model, "-q", "--gain", "1"}, in).code == 0);
  const std::string good = slurp(folder / "s.nacre");
  const auto decode = [&](const std::string& stream) {
    spill(folder / "bad.nacre", stream);
    return run(folder, {"decode", "-", "-o", "-", "-m", model}, folder / "bad.nacre");
  };
  const std::string heard = decode(good).out;
  REQUIRE(heard.size() == 44 + 6000);
  // In the header: nothing is written.
  std::string bad = good;
  bad[41] = static_cast<char>(bad[41] ^ 4);
  Outcome o = decode(bad);
  refused(folder, o, 3, "CRC of the header");
  CHECK(o.out.empty());
  CHECK(decode("").code == 3);
  CHECK(decode(slurp(in)).code == 3);
  // In packet 200 of 375, each of 17 bytes: two codes of four bits.
  bad = good;
  bad[60 + 200 * 17 + 12] = static_cast<char>(bad[60 + 200 * 17 + 12] ^ 1);
  o = decode(bad);
  refused(folder, o, 3, "the CRC of packet 200 does not match");
  const auto samples = static_cast<size_t>(delivered(decoding_latency(tiny_config()), 200 * 8));
  CHECK(o.out == heard.substr(0, 44 + 2 * samples));
  o = decode(good.substr(0, 60 + 200 * 17));
  refused(folder, o, 3, "the stream is cut off");
  CHECK(o.out == heard.substr(0, 44 + 2 * samples));
  refused(folder, decode(good + "x"), 3, "after the end of the stream");
  // Another model's stream.
  const std::string other = tiny_model(folder, "other.safetensors", 2);
  o = run(folder, {"decode", "-", "-o", "-", "-m", other}, folder / "s.nacre");
  refused(folder, o, 3, "was encoded by model");
  CHECK(o.out.empty());
  // More padding than a live encoder makes, which the format allows. This model has no lookahead, which would keep the
  // samples back.
  const std::string causal = tiny_model(folder, "causal.safetensors", 1, causal_config());
  REQUIRE(run(folder, {"encode", in, "-o", folder / "c.nacre", "-m", causal, "-q"}).code == 0);
  const training::StreamFacts facts = training::check_stream(folder / "c.nacre");
  StreamHeader h = facts.header;
  h.samples = StreamHeader::unknown, h.packet_frames = 1;
  std::string padded;
  StreamWriter writer(
      h, [&](std::span<const std::byte> b) { padded.append(reinterpret_cast<const char*>(b.data()), b.size()); });
  writer.write(0, std::vector<int32_t>(2 * 40, 3));
  writer.finish(37 * 8);
  spill(folder / "padded.nacre", padded);
  o = run(folder, {"decode", "-", "-o", "-", "-m", causal}, folder / "padded.nacre");
  refused(folder, o, 3, "17 samples too many were written");
  CHECK(run(folder, {"decode", folder / "padded.nacre", "-o", folder / "p.wav", "-m", causal, "-q"}).code == 0);
}

TEST_CASE("live: a signal ends a program that waits, and nothing remains", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder), out = folder / "out.nacre";
  const auto self = [](int fd) { return "/proc/self/fd/" + std::to_string(fd); };
  for (const int signal : {SIGINT, SIGTERM}) {
    Pipe in;
    Running encoder(folder, {"encode", "-", "-o", out, "-m", model, "--gain", "1"}, self(in.from));
    in.close_from();
    in.write(endless_header(16000) + std::string(2000, '\0'));
    // The temporary file shows that the encoder is behind the header and will wait for samples.
    const auto begun = [&] {
      for (const auto& entry : fs::directory_iterator(folder.path()))
        if (entry.path().filename().string().starts_with(".nacre-out-")) return true;
      return false;
    };
    while (!begun() && !encoder.ended()) ::usleep(1000);
    ::kill(encoder.pid(), signal);
    const Outcome o = encoder.wait();
    INFO(o.err);
    CHECK(o.code == 128 + signal);
    CHECK(o.err.find("stopped") != std::string::npos);
    CHECK_FALSE(fs::exists(out));
    CHECK_FALSE(begun());
  }
  // A decoder that waits for packets.
  REQUIRE(run(folder, {"encode", "-", "-o", folder / "s.nacre", "-m", model, "-q", "--gain", "1"},
              write_voice(folder / "in.wav", 3000))
              .code == 0);
  Pipe in, heard;
  Running decoder(folder, {"decode", "-", "-o", "-", "-m", model}, self(in.from), self(heard.to));
  in.close_from(), heard.close_to();
  in.write(slurp(folder / "s.nacre").substr(0, 3000));
  CHECK(heard.read(44).size() == 44);
  ::kill(decoder.pid(), SIGINT);
  CHECK(decoder.wait().code == 130);
}

TEST_CASE("live: a reader that goes away ends the program", "[cli][live]") {
  const Folder folder;
  const std::string model = tiny_model(folder);
  write_voice(folder / "in.wav", 200000);
  const std::string encode =
      std::string(NACRE_PROGRAM) + " encode - -o - -m model.safetensors -t 1 -q --gain 1 < in.wav";
  // SIGPIPE, as for every program in a pipeline.
  CHECK(in_shell(folder, encode + " | head -c 100 > head; exit ${PIPESTATUS[0]}") == 128 + SIGPIPE);
  CHECK(fs::file_size(folder / "head") == 100);
  if (::access("/dev/full", W_OK) == 0) {
    CHECK(in_shell(folder, encode + " > /dev/full") == 4);
    CHECK(slurp(folder / "shell.err").find("standard output: cannot write") != std::string::npos);
  }
}
