// The figures of a run, where users read them. Each has its own name on the screen, in TensorBoard's files and in every
// table of the report.
#include <map>

#include "log/event_reader.h"
#include "nacre/codec/codec.h"
#include "nacre/report/report.h"
#include "training/trainer_runs.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::string text_of(double x, const char* format) {
  char text[64];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

std::string without_tags(const std::string& html) {
  std::string out;
  bool inside = false;
  for (const char c : html) {
    if (c == '<') inside = true;
    if (!inside) out += c;
    if (c == '>') inside = false;
  }
  return out;
}

/// The text between each `<tag...>` and its `</tag>`.
std::vector<std::string> parts(const std::string& html, const std::string& tag) {
  std::vector<std::string> out;
  for (size_t at = html.find("<" + tag); at != std::string::npos; at = html.find("<" + tag, at)) {
    const size_t from = html.find('>', at) + 1, to = html.find("</" + tag + ">", from);
    out.push_back(html.substr(from, to - from));
    at = to;
  }
  return out;
}

using Row = std::map<std::string, std::string>;

/// The rows of the first table behind `mark`, as cells under their headings, the foot included.
std::vector<Row> table_behind(const std::string& html, const std::string& mark) {
  const size_t at = html.find(mark);
  REQUIRE(at != std::string::npos);
  const std::vector<std::string> tables = parts(html.substr(at), "table");
  REQUIRE(!tables.empty());
  const size_t end_of_heads = tables[0].find("</thead>");
  std::vector<std::string> heads;
  for (const std::string& head : parts(tables[0].substr(tables[0].find("<tr>"), end_of_heads), "th"))
    heads.push_back(without_tags(head));
  std::vector<Row> rows;
  for (const std::string& line : parts(tables[0].substr(end_of_heads), "tr")) {
    Row row;
    const std::vector<std::string> cells = parts(line, "td");
    REQUIRE(cells.size() == heads.size());
    for (size_t i = 0; i < cells.size(); ++i) row[heads[i]] = without_tags(cells[i]);
    rows.push_back(row);
  }
  return rows;
}

RunConfig two_epochs() {
  RunConfig config = tiny();
  config.training.num_epochs = 2;
  config.optimizer.learning_rate = 0.003;
  config.optimizer.ema_decay = 0.5;
  return config;
}

/// Held-out files are long enough for each figure to be a number, and differ in level.
void write_run_data(const TemporaryFolder& folder) {
  write_sounds(folder);
  for (int i = 0; i < 2; ++i) {
    std::vector<float> x = sine(12000 + 3000 * i, 250 + 400 * i, 16000, 0.3);
    const Philox noise{3, static_cast<uint64_t>(i)};
    for (size_t t = 0; t < x.size(); ++t) x[t] += static_cast<float>(0.2 * noise.uniform(t));
    write_wav(folder / ("data/valid/" + std::to_string(i) + ".wav"),
              {.samples = x, .sample_rate = 16000, .channels = 1});
  }
}

}  // namespace

TEST_CASE("reported figures: the screen and TensorBoard have the log's") {
  const TemporaryFolder folder;
  write_run_data(folder);
  Trainer t(folder, "run", two_epochs());
  const std::string screen = t.run().text;
  int64_t evaluations = 0;
  std::map<std::pair<std::string, uint64_t>, float> events;
  for (const auto& entry : fs::directory_iterator(t.options.run)) {
    if (!contains(entry.path().filename(), "tfevents")) continue;
    for (const Fields& event : parse_events(read_bytes(entry.path())).events) {
      uint64_t step = 0;
      for (const Field& f : event)
        if (f.number == 2) step = f.value;
      for (const Field& f : event) {
        if (f.number != 5) continue;
        const Fields value = inside(parse_message(f.bytes), 1);
        for (const Field& number : value)
          if (number.number == 2) events[{get(value, 1).bytes, step}] = number.single();
      }
    }
  }
  for (const nlohmann::json& line : log_lines(t.options.run)) {
    const auto step = line["step"].get<uint64_t>();
    INFO("step " << step);
    const auto in_events = [&](const std::string& tag, double value) {
      INFO(tag);
      REQUIRE(events.count({tag, step}) == 1);
      CHECK(events.at({tag, step}) == static_cast<float>(value));
    };
    const auto of = [&](const char* key) { return line[key].get<double>(); };
    if (line.contains("loss")) {
      in_events("train/loss", of("loss"));
      for (const char* key : {"waveform/loss", "stft/loss", "mel/loss", "vq/commitment_loss", "vq/codebook_loss",
                              "other/grad_norm", "other/learning_rate"})
        in_events(key, of(key));
      continue;
    }
    ++evaluations;
    for (const char* key : {"loss", "waveform", "stft", "mel", "vq", "share_waveform", "share_stft", "share_mel", "snr",
                            "si_sdr", "segmental_snr", "stoi", "estoi", "mel_distance", "stft_distance", "output_mean",
                            "output_std", "input_mean", "input_std"})
      in_events(std::string("valid/") + key, line[std::string("valid/") + key].get<double>());
    std::string used, perplexity;
    for (size_t i = 0; i < 2; ++i) {
      in_events("codebook_usage/" + std::to_string(i), line["codebook_usage"][i].get<double>());
      in_events("codebook_perplexity/" + std::to_string(i), line["codebook_perplexity"][i].get<double>());
      used += (i > 0 ? " " : "") + text_of(100 * line["codebook_usage"][i].get<double>(), "%.0f");
      perplexity += (i > 0 ? " " : "") + text_of(line["codebook_perplexity"][i].get<double>(), "%.0f");
    }
    const auto loss = [&](const char* key) { return text_of(of(key), of(key) < 0.1 ? "%.4f" : "%.3f"); };
    const auto share = [&](const char* key) { return " [" + text_of(100 * of(key), "%.0f %%") + "]"; };
    for (const std::string& expected :
         {"  loss " + text_of(of("valid/loss"), "%.3f") + " (waveform " + loss("valid/waveform") +
              share("valid/share_waveform") + ", STFT " + loss("valid/stft") + share("valid/share_stft") + ", mel " +
              loss("valid/mel") + share("valid/share_mel") + ", VQ " + loss("valid/vq") + ")",
          "held out: SNR " + text_of(of("valid/snr"), "%+.2f") + " dB  SI-SDR " + text_of(of("valid/si_sdr"), "%+.2f") +
              " dB  STOI " + text_of(of("valid/stoi"), "%.3f") + "  mel " + text_of(of("valid/mel_distance"), "%.3f") +
              "  STFT " + text_of(of("valid/stft_distance"), "%.3f") + "  output mean " +
              text_of(of("valid/output_mean"), "%+.4f") + " std " + text_of(of("valid/output_std"), "%.3f") +
              " (input " + text_of(of("valid/input_mean"), "%+.4f") + ", " + text_of(of("valid/input_std"), "%.3f") +
              ")",
          " used [" + used + "], perplexity ", " of 16 [" + perplexity + "]"}) {
      INFO(expected << "\n" << screen);
      CHECK(contains(screen, expected));
    }
  }
  CHECK(evaluations == 3);
}

TEST_CASE("reported figures: the report's tables have the scores, the codebooks and the log") {
  const TemporaryFolder folder;
  write_run_data(folder);
  const RunConfig config = two_epochs();
  Trainer t(folder, "run", config);
  t.run();
  ReportOptions o{
      .run = t.options.run, .model = {}, .data_dir = folder.path() + "/data", .output = folder / "page.html"};
  o.context.threads = 1;
  const ReportResult report = write_report(o);
  const std::string html = read_bytes(o.output.string());

  Context ctx({.device = {}, .threads = 1});
  Codec codec = Codec::load(ctx, find_model(t.options.run));
  const Dataset data(folder / "data", dataset_options(config));
  Evaluation e(codec);
  REQUIRE(data.held_out().size() == 2);
  for (const int64_t clip : data.held_out()) e.add(data.clips()[static_cast<size_t>(clip)].path, *data.load(clip));
  CHECK(report.snr == e.snr());

  const std::vector<Row> files = table_behind(html, "<h2>Scores</h2>");
  REQUIRE(files.size() == 3);
  for (size_t i = 0; i < 2; ++i) {
    const ClipScore& s = e.clips()[i];
    Row row = files[i];
    CHECK(row["File"] == s.name);
    CHECK(row["Length s"] == text_of(s.seconds, "%.2f"));
    CHECK(row["SNR dB"] == text_of(s.snr, "%+.2f"));
    CHECK(row["SI-SDR dB"] == text_of(s.si_sdr, "%+.2f"));
    CHECK(row["Mel distance"] == text_of(s.mel, "%.3f"));
    CHECK(row["STFT distance"] == text_of(s.stft, "%.3f"));
  }
  Row mean = files[2];
  CHECK(mean["File"] == "Mean of 2");
  CHECK(mean["SNR dB"] == text_of(e.snr(), "%+.2f"));
  CHECK(mean["SI-SDR dB"] == text_of(e.si_sdr(), "%+.2f"));
  CHECK(mean["Mel distance"] == text_of(e.mel(), "%.3f"));
  CHECK(mean["STFT distance"] == text_of(e.stft(), "%.3f"));

  Row codes = table_behind(html, "<h2>Comparison</h2>")[0];
  CHECK(codes["Codec"] == "This codec");
  CHECK(codes["kbit/s"] == "32.0");  // 2 codes of 4 bits, 4000 times a second
  CHECK(codes["SNR dB"] == mean["SNR dB"]);
  CHECK(codes["SI-SDR dB"] == mean["SI-SDR dB"]);
  CHECK(codes["STOI"] == text_of(e.stoi(), "%.3f"));
  CHECK(codes["Mel distance"] == mean["Mel distance"]);
  CHECK(codes["STFT distance"] == mean["STFT distance"]);

  const std::vector<Row> books = table_behind(html, "<h2>Codebooks</h2>");
  REQUIRE(books.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    Row row = books[i];
    CHECK(row["Codebook"] == std::to_string(i + 1));
    CHECK(row["Codes in use %"] == text_of(100 * e.usage()[i], "%.1f"));
    CHECK(row["Perplexity of 16"] == text_of(e.perplexity()[i], "%.0f"));
  }

  const std::vector<Row> history = table_behind(html, "<summary>Every evaluation");
  size_t at = 0;
  for (const nlohmann::json& line : log_lines(t.options.run)) {
    if (!line.contains("valid/loss")) continue;
    REQUIRE(at < history.size());
    Row row = history[at++];
    const auto of = [&](const char* key) { return line[key].get<double>(); };
    CHECK(row["Epoch"] == (line["epoch"] == 0 ? "start" : text_of(of("epoch"), "%.0f")));
    CHECK(row["Step"] == text_of(of("step"), "%.0f"));
    CHECK(row["Loss"] == text_of(of("valid/loss"), "%.3f"));
    const auto loss = [&](const char* key) { return text_of(of(key), of(key) < 0.1 ? "%.4f" : "%.3f"); };
    CHECK(row["Waveform"] == loss("valid/waveform"));
    CHECK(row["STFT"] == loss("valid/stft"));
    CHECK(row["Mel"] == loss("valid/mel"));
    CHECK(row["VQ"] == loss("valid/vq"));
    CHECK(row["SNR dB"] == text_of(of("valid/snr"), "%+.2f"));
    CHECK(row["SI-SDR dB"] == text_of(of("valid/si_sdr"), "%+.2f"));
    CHECK(row["Output mean"] == text_of(of("valid/output_mean"), "%+.4f"));
    CHECK(row["Output std"] == text_of(of("valid/output_std"), "%.3f"));
    if (line.contains("valid/grad_norm")) CHECK(row["Gradient norm"] == text_of(of("valid/grad_norm"), "%.2f"));
  }
  CHECK(at == history.size());
}
