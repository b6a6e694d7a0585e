// The report: a log read back as one history, charts, text that cannot become markup, and a whole page of a tiny run.
#include "nacre/training/report.h"

#include <limits>

#include "files.h"
#include "harness.h"
#include "nacre/codec.h"
#include "nacre/training/run_config.h"
#include "training/chart.h"
#include "training/report_log.h"

using namespace nacre;
using namespace nacre::test;
using namespace nacre::training;

namespace {

size_t count_of(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size())) ++n;
  return n;
}

/// A run that never ran: random weights and a log of two epochs.
RunConfig tiny_run(const TemporaryFolder& folder) {
  RunConfig c = RunConfig::from_json(
      R"({"codec": {"encoder_dim": 4, "encoder_rates": [2, 4], "decoder_dim": 16, "decoder_rates": [4, 2], "latent_dim": 8,
                    "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16},
          "training": {"valid_fraction": 0.3}})");
  write_bytes(folder / "run/config.json", c.to_json());
  write_bytes(
      folder / "run/log.jsonl",
      R"({"step":10,"epoch":1,"loss":2.5,"waveform/loss":0.1,"stft/loss":1.5,"mel/loss":0.8,"vq/commitment_loss":0.1}
{"step":10,"epoch":1,"valid/loss":2.4,"valid/snr":1.5,"trained_seconds":30,"codebook_usage":[0.5,1],"codebook_perplexity":[4,9]}
{"step":20,"epoch":2,"valid/loss":2.0,"valid/snr":3.5,"trained_seconds":60,"codebook_usage":[0.6,1],"codebook_perplexity":[5,9]}
)");
  Context ctx({.threads = 1});
  Codec codec(ctx, c.codec);
  initialise(ctx, codec.parameters(), codec.config(), 7);
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
  // A gap is two pieces of line.
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
              "{\"step\":30,\"lo\n"                // killed here
              "[1]\nnot json\n{\"step\":\"x\"}\n"  // nobody wrote this
              "{\"step\":20,\"loss\":2.5}\n"       // resumed from step 10
              "{\"step\":20,\"valid/loss\":2.25,\"trained_seconds\":7,\"codebook_usage\":[1,null]}\n");
  const RunLog log = read_run_log(path);
  REQUIRE(log.train.size() == 2);
  CHECK(log.train[1].step == 20);
  CHECK(log.train[1].loss == 2.5);
  CHECK(std::isnan(log.train[1].mel));
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

TEST_CASE("a report is one page with everything inside", "[training][report]") {
  const TemporaryFolder folder;
  tiny_run(folder);
  // Names that try to leave their place, audio of odd lengths, one file of a single frame; silence, which is no
  // material.
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
  CHECK(html.find("nan") == std::string::npos);
  CHECK(count_of(html, "<img ") == 6);
  CHECK(count_of(html, "src=\"data:image/png;base64,iVBORw0KGgo") == 6);
  CHECK(count_of(html, "<audio ") == 6);
  CHECK(count_of(html, "src=\"data:audio/wav;base64,UklGR") == 6);
  CHECK(count_of(html, "<svg ") == count_of(html, "</svg>"));
  CHECK(count_of(html, "<tr>") == count_of(html, "</tr>"));
  CHECK(html.find("the first 8.0 of 9.0 s") != std::string::npos);
  CHECK(html.find("b &quot;quoted&quot; &amp; long.wav") != std::string::npos);

  // A page that is there stays, unless it may be replaced.
  CHECK_THROWS_AS(write_report(o), Error);
  CHECK(read_bytes(o.output.string()) == html);
  o.overwrite = true;
  o.progress = {};
  o.max_seconds = 0.1;
  o.examples = 0;
  CHECK(write_report(o).files == 1);
  CHECK(count_of(read_bytes(o.output.string()), "<audio ") == 0);
}
