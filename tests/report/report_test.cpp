// The report: a log read as one history, charts, text that cannot become markup, and the whole page of a tiny run.
#include "nacre/report/report.h"

#include <limits>

#include "data/files.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/training/baseline.h"
#include "nacre/training/run_config.h"
#include "nacre/training/trainer.h"
#include "report/chart.h"
#include "report/report_compare.h"
#include "report/report_log.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

size_t count_of(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size())) ++n;
  return n;
}

/// The page without its pictures and sounds, whose base64 may contain any word.
std::string without_data(std::string html) {
  for (size_t at; (at = html.find("\"data:")) != std::string::npos;) html.erase(at, html.find('"', at + 1) + 1 - at);
  return html;
}

/// Writes a run without training: random weights and a log of two epochs.
RunConfig tiny_run(const TemporaryFolder& folder, int64_t channels = 1) {
  RunConfig c = RunConfig::from_json(
      R"({"codec": {"encoder_dim": 4, "encoder_rates": [2, 4], "decoder_dim": 16, "decoder_rates": [4, 2],
                    "latent_dim": 8, "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16},
          "training": {"valid_fraction": 0.3}})");
  c.codec.audio_channels = channels;
  write_bytes(folder / "run/config.json", c.to_json());
  write_bytes(
      folder / "run/log.jsonl",
      R"({"step":10,"epoch":1,"loss":2.5,"waveform/loss":0.1,"stft/loss":1.5,"mel/loss":0.8,"vq/commitment_loss":0.1}
{"step":10,"epoch":1,"valid/loss":2.4,"valid/snr":1.5,"trained_seconds":30,"codebook_usage":[0.5,1],"codebook_perplexity":[4,9]}
{"step":20,"epoch":2,"valid/loss":2.0,"valid/snr":3.5,"trained_seconds":60,"codebook_usage":[0.6,1],"codebook_perplexity":[5,9]}
)");
  Context ctx({.threads = 1});
  Codec codec(ctx, c.codec);
  codec.parameters().initialise(ctx, 7);
  codec.save(folder / "run/model.safetensors");
  return c;
}

}  // namespace

TEST_CASE("text in a report cannot become markup", "[training][report]") {
  CHECK(html_text("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#39;");
  CHECK(html_text("తెలుగు.wav") == "తెలుగు.wav");
  CHECK(html_text("a\x1b[0m") == "a\xEF\xBF\xBD[0m");
  CHECK(html_text("\xff") == "\xEF\xBF\xBD");
}

TEST_CASE("charts of any points are finite", "[training][report]") {
  const double none = std::numeric_limits<double>::quiet_NaN();
  std::vector<std::pair<double, double>> many;
  for (int i = 0; i < 100000; ++i) many.emplace_back(i, 1.0 / (1 + i));
  for (const bool log : {false, true}) {
    for (const std::vector<std::pair<double, double>>& points :
         {std::vector<std::pair<double, double>>{},  // nothing yet
          {{1, none}},                               // nothing finite
          {{120, 7.3}},                              // one evaluation
          {{1, 0}, {2, 0}},                          // no range
          {{1, -5}, {2, none}, {3, 5}, {4, 6}},      // a gap
          {{0, 1e-12}, {5, 1e12}},
          many}) {
      const std::string html =
          chart_html({.title = "<t>", .log_y = log, .series = {{"a", "red", points}, {"b", "blue", {}}}});
      CHECK(html.find("nan") == std::string::npos);
      CHECK(html.find("inf") == std::string::npos);
      CHECK(html.find("<t>") == std::string::npos);
      CHECK(html.size() < 20000);
    }
  }
  // A gap gives two pieces of line.
  const std::string gap = chart_html({.series = {{"a", "red", {{1, 1}, {2, 2}, {3, none}, {4, 1}, {5, 2}}}}});
  const size_t line = gap.find("class=\"line\"");
  REQUIRE(line != std::string::npos);
  CHECK(count_of(gap.substr(line, gap.find("/>", line) - line), "M") == 2);
}

TEST_CASE("the log of a resumed run is one history", "[training][report]") {
  const TemporaryFolder folder;
  const std::string path = folder / "log.jsonl";
  write_bytes(path,
              "{\"step\":10,\"loss\":3}\n"
              "{\"step\":10,\"valid/loss\":3,\"trained_seconds\":10}\n"
              "{\"step\":20,\"loss\":2}\n"
              "{\"step\":20,\"valid/loss\":2,\"valid/snr\":null,\"trained_seconds\":20}\n"
              "{\"step\":30,\"loss\":9}\n"
              "{\"step\":30,\"lo\n"                // cut by a kill
              "[1]\nnot json\n{\"step\":\"x\"}\n"  // lines that nacre never writes
              "{\"step\":20,\"loss\":2.5}\n"       // resumed from step 10
              "{\"step\":20,\"valid/loss\":2.25,\"trained_seconds\":7,\"codebook_usage\":[1,null]}\n");
  const RunLog log = read_run_log(path);
  REQUIRE(log.train.size() == 2);
  CHECK(log.train[1].step == 20);
  CHECK(log.train[1].loss == 2.5);
  CHECK(log.terms.empty());
  REQUIRE(log.valid.size() == 2);
  CHECK(log.valid[0].loss == 3);
  CHECK(log.valid[1].loss == 2.25);
  REQUIRE(log.valid[1].usage.size() == 2);
  CHECK(log.valid[1].usage[0] == 1);
  CHECK(std::isnan(log.valid[1].usage[1]));
  CHECK(log.step == 20);
  CHECK(log.trained_seconds == 27);

  CHECK_THROWS_AS(read_run_log(folder / "missing.jsonl"), Error);
  write_bytes(path, "\n{}\n");
  CHECK_THROWS_AS(read_run_log(path), Error);
}

TEST_CASE("a log names the terms of its loss, in their order", "[training][report]") {
  const TemporaryFolder folder;
  write_bytes(folder / "log.jsonl",
              "{\"step\":1,\"loss\":3,\"waveform/loss\":1,\"mel/loss\":0.5,\"vq/commitment_loss\":0.25}\n"
              "{\"step\":2,\"loss\":3,\"waveform/loss\":2,\"mel/loss\":null,\"adversarial/loss\":4}\n"
              "{\"step\":2,\"valid/loss\":3,\"valid/mel\":5,\"valid/mel_distance\":8,\"valid/share_feature\":0.5,"
              "\"valid/share_mel\":0.25}\n");
  const RunLog log = read_run_log(folder / "log.jsonl");
  CHECK(log.terms == std::vector<std::string>{"waveform", "mel", "adversarial", "feature"});
  REQUIRE(log.train.size() == 2);
  CHECK(log.train[0].terms == std::vector<double>{1, 0.5});
  CHECK(log.train[0].commitment == 0.25);
  CHECK(std::isnan(term_of(log.train[0].terms, 2)));
  CHECK(log.train[1].terms[0] == 2);
  CHECK(std::isnan(log.train[1].terms[1]));
  CHECK(log.train[1].terms[2] == 4);
  REQUIRE(log.valid.size() == 1);
  REQUIRE(log.valid[0].terms.size() == 4);
  CHECK(std::isnan(log.valid[0].terms[0]));
  CHECK(log.valid[0].terms[1] == 5);
  CHECK(log.valid[0].shares[1] == 0.25);
  CHECK(log.valid[0].shares[3] == 0.5);
}

TEST_CASE("a report is one page with everything inside", "[training][report]") {
  const TemporaryFolder folder;
  tiny_run(folder);
  // Names that try to leave their folder, audio of odd lengths, one file of a single frame, and silence, which is not
  // scored.
  write_sine(folder / "data/a.wav", 20000);
  write_sine(folder / "data/valid/<script>alert(1)<\\script>.wav", 16001, 300);
  write_sine(folder / "data/valid/b \"quoted\" & long.wav", 16000 * 9, 500);
  write_sine(folder / "data/valid/short.wav", 8, 3000);
  write_sine(folder / "data/valid/silent.wav", 4000, 300, 16000, 0);
  ReportOptions o{
      .run = folder / "run", .model = {}, .data_dir = folder.path() + "/data", .output = folder / "page.html"};
  o.context.threads = 1;
  int64_t calls = 0;
  o.progress = [&](int64_t done, int64_t all) { CHECK((++calls == done && all == 3)); };
  const ReportResult r = write_report(o);
  CHECK(calls == 3);
  CHECK(r.files == 3);
  const std::string html = read_bytes(o.output.string());
  CHECK(html.size() == r.bytes);
  CHECK(html.find("<script") == std::string::npos);
  CHECK(html.find("http://") == std::string::npos);
  CHECK(html.find("https://") == std::string::npos);
  CHECK(without_data(html).find("nan") == std::string::npos);
  // Three files: original, decoded, and Opus if it is available.
  const size_t sounds = opus_unavailable() ? 6 : 9;
  CHECK(count_of(html, "<img ") == sounds);
  CHECK(count_of(html, "src=\"data:image/png;base64,iVBORw0KGgo") == sounds);
  CHECK(count_of(html, "<audio ") == sounds);
  CHECK(count_of(html, "src=\"data:audio/wav;base64,UklGR") == sounds);
  CHECK(count_of(html, "<svg ") == count_of(html, "</svg>"));
  CHECK(count_of(html, "<tr>") == count_of(html, "</tr>"));
  CHECK(html.find("the first 8.0 of 9.0 s") != std::string::npos);
  CHECK(html.find("b &quot;quoted&quot; &amp; long.wav") != std::string::npos);

  // An existing page stays, unless it may be replaced.
  CHECK_THROWS_AS(write_report(o), Error);
  CHECK(read_bytes(o.output.string()) == html);
  o.overwrite = true;
  o.progress = {};
  o.max_seconds = 0.1;
  o.examples = 0;
  CHECK(write_report(o).files == 1);
  CHECK(count_of(read_bytes(o.output.string()), "<audio ") == 0);
}

TEST_CASE("a report sets baselines beside the codec", "[training][report]") {
  const TemporaryFolder folder;
  const RunConfig config = tiny_run(folder);
  write_sine(folder / "data/a.wav", 20000);
  write_sine(folder / "data/valid/b.wav", 16000, 500);
  write_sine(folder / "data/valid/c.wav", 12345, 700);
  ReportOptions o{
      .run = folder / "run", .model = {}, .data_dir = folder.path() + "/data", .output = folder / "page.html"};
  o.context.threads = 1;
  o.overwrite = true;
  const std::string start = folder / "run/start/model.safetensors", model = folder / "run/model.safetensors";
  const auto page = [&] {
    write_report(o);
    return read_bytes(o.output.string());
  };
  /// The cells of the row with that name in the comparison.
  const auto row = [](const std::string& html, const std::string& name) {
    const size_t at = html.find("<tr><td>" + name + "</td>");
    return at == std::string::npos ? std::string()
                                   : html.substr(at + 13 + name.size(), html.find("</tr>", at) - at - 13 - name.size());
  };
  const size_t opus = opus_unavailable() ? 0 : 2;  // sounds of two files

  SECTION("the same weights as the start's have the same figures") {
    write_bytes(start, read_bytes(model));
    const std::string html = page();
    CHECK(count_of(html, "<audio ") == 6 + opus);
    const std::string figures = row(html, "This codec");
    CHECK(figures.rfind("<td>16.0</td>", 0) == 0);  // 2 codes of 4 bits, 2000 times a second
    CHECK(row(html, "Before training") == figures);
    CHECK(count_of(html, "<b>Before training</b>") == 2);
    CHECK(html.find("the codec before training has") != std::string::npos);
    CHECK(html.find("is not shown") == (opus > 0 ? std::string::npos : html.find("Opus is not shown")));
  }
  SECTION("other weights have others") {
    Context ctx({.threads = 1});
    Codec codec(ctx, config.codec);
    codec.parameters().initialise(ctx, 8);
    codec.save(start);
    const std::string html = page();
    CHECK(!row(html, "Before training").empty());
    CHECK(row(html, "Before training") != row(html, "This codec"));
  }
  SECTION("a start that is not there, damaged, or of another shape is named, and the page is made") {
    CHECK(page().find("the run has no start/model.safetensors") != std::string::npos);
    write_bytes(start, "damaged");
    CHECK(page().find("The codec before training is not shown: ") != std::string::npos);
    Context ctx({.threads = 1});
    CodecConfig other = config.codec;
    other.n_codebooks = 3;
    Codec codec(ctx, other);
    codec.parameters().initialise(ctx, 8);
    codec.save(start);
    const std::string html = page();
    CHECK(html.find("has another configuration") != std::string::npos);
    CHECK(row(html, "Before training").empty());
    CHECK(count_of(html, "<audio ") == 4 + opus);
  }
  if (opus > 0) {
    SECTION("Opus has its measured bitrate") {
      const std::string html = page();
      CHECK(count_of(html, "<b>Opus</b>") == 2);
      double bits = 0, seconds = 0;
      for (const char* name : {"data/valid/b.wav", "data/valid/c.wav"}) {
        std::vector<float> x = read_audio(folder / name).samples;
        normalise_peak(x);
        bits += 8 * static_cast<double>(code_opus(x, 16000, 16000).bytes);
        seconds += static_cast<double>(x.size()) / 16000;
      }
      CHECK(row(html, "Opus").rfind("<td>" + figure_of(bits / seconds / 1000, "%.1f") + "</td>", 0) == 0);
    }
  }
}

TEST_CASE("a report on a codec of two channels is in stereo", "[training][report][stereo]") {
  for (const int64_t channels : {1, 2}) {
    INFO(channels << " channels");
    const TemporaryFolder folder;
    const RunConfig config = tiny_run(folder, channels);
    std::vector<float> x;
    for (const float v : sine(16000 * 9, 500, 16000)) x.insert(x.end(), {v, 0.5f * v});
    write_wav(folder / "data/a.wav", {.samples = x, .sample_rate = 16000, .channels = 2});
    write_wav(folder / "data/valid/b.wav", {.samples = x, .sample_rate = 16000, .channels = 2});
    ReportOptions o{
        .run = folder / "run", .model = {}, .data_dir = folder.path() + "/data", .output = folder / "page.html"};
    o.context.threads = 1;
    const ReportResult r = write_report(o);
    const std::string html = read_bytes(o.output.string());
    // The number of channels is in bytes 22 and 23 of a WAV header, between those of the format and the rate. Bytes 21
    // to 23 are characters 28 to 31 of base64.
    const std::string head = "src=\"data:audio/wav;base64,";
    size_t sounds = 0;
    for (size_t at = html.find(head); at != std::string::npos; at = html.find(head, at + 1), ++sounds)
      CHECK(html.substr(at + head.size() + 28, 4) == (channels == 2 ? "AAIA" : "AAEA"));
    CHECK(sounds == (opus_unavailable() ? 2 : 3));
    const bool stereo = channels == 2;
    CHECK((html.find("codes stereo audio of 16 kHz") != std::string::npos) == stereo);
    CHECK(html.find(stereo ? "16-bit samples, 512 kbit/s" : "16-bit samples, 256 kbit/s") != std::string::npos);
    CHECK(html.find(stereo ? "rate, stereo, scaled" : "rate, mono, scaled") != std::string::npos);
    CHECK(html.find("the first 8.0 of 9.0 s") != std::string::npos);
    // Two codes of 4 bits, 2000 times a second, for all channels together.
    Context ctx({.threads = 1});
    Codec codec = Codec::load(ctx, folder / "run/model.safetensors");
    const Dataset data(folder / "data", dataset_options(config));
    Evaluation e(codec);
    e.add("b", *data.load(data.held_out()[0]));
    CHECK(r.snr == e.snr());
    CHECK(code_bits(config.codec, e.clips()[0]) == 9 * 16000.0);
    CHECK(count_of(html, "<tr><td>This codec</td><td>16.0</td>") == 1);
  }
}

TEST_CASE("a comparison without baselines says why", "[training][report]") {
  Baseline codec{.name = "This codec", .scores = {}, .bits = 32000};
  codec.scores.add({.name = "a", .seconds = 2, .snr = 5, .si_sdr = 4, .mel = 1, .stft = 2, .stoi = 0.75});
  const std::string html = comparison_html(codec, {}, {"Opus is not shown: library <1> cannot write Ogg Opus."});
  CHECK(html.find("<td>16.0</td><td>+5.00</td><td>+4.00</td><td>0.750</td><td>1.000</td><td>2.000</td>") !=
        std::string::npos);
  CHECK(html.find("<li>Opus is not shown: library &lt;1&gt; cannot write Ogg Opus.</li>") != std::string::npos);
  CHECK(html.find("Opus was set") == std::string::npos);
}
