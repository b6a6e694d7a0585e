// A line of progress: redrawn in place on a terminal, otherwise written as whole lines at longer intervals.
#include "nacre/log/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "files/text.h"

namespace nacre::training {
namespace {

using Clock = std::chrono::steady_clock;

std::string format(const char* pattern, double x) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, x);
  return text.data();
}

/// Whether a line can be redrawn in place. Otherwise whole lines are written, and less often.
bool is_terminal(std::FILE* file) {
  const char* term = std::getenv("TERM");
  return ::isatty(::fileno(file)) == 1 && term != nullptr && std::strcmp(term, "dumb") != 0;
}

size_t columns(std::FILE* file) {
  winsize size{};
  return ::ioctl(::fileno(file), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 100;
}

/// At most n characters of the text; no character is split.
std::string shortened(const std::string& text, size_t n) {
  size_t characters = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    // A continuation byte of UTF-8 begins no character.
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (characters++ == n) return text.substr(0, i);
  }
  return text;
}

}  // namespace

struct Progress::Impl {
  std::string label;
  int64_t total;
  std::string unit;
  ProgressOptions options;
  bool terminal = false, colour = false, drawn = false, finished = false;
  Clock::time_point start = Clock::now(), last_draw = start, last_rate = start;
  int64_t done = 0, last_done = 0;
  double rate = 0;  // per second, smoothed over about half a minute
  std::string details = {};

  double since(Clock::time_point t) const { return std::chrono::duration<double>(Clock::now() - t).count(); }
  std::string text() const;
  void clear();
  void draw();
};

std::string Progress::Impl::text() const {
  std::string out;
  if (total > 0) {
    const double part = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
    if (terminal) {
      const auto filled = static_cast<size_t>(part * 16);
      out += "  [" + std::string(filled, '#') + std::string(16 - filled, '-') + "]";
    }
    out += "  " + std::to_string(static_cast<int>(part * 100)) + " %  " + std::to_string(done) + "/" +
           std::to_string(total) + " " + unit;
  } else {
    out += "  " + std::to_string(done) + " " + unit;
  }
  const double elapsed = since(start);
  // At the end the mean over all; before it the smoothed rate, which follows changes. `first` was done by an earlier
  // process.
  const double speed = finished && elapsed > 0 ? static_cast<double>(done - options.first) / elapsed : rate;
  if (speed > 0) out += "  " + format(speed < 100 ? "%.3g " : "%.0f ", speed) + unit + "/s";
  if (finished)
    out += "  in " + describe_duration(elapsed);
  else if (total > 0 && speed > 0 && done < total)
    out += "  " + describe_duration(static_cast<double>(total - done) / speed) + " left";
  if (!details.empty()) out += "  " + details;
  return out;
}

void Progress::Impl::clear() {
  // To the first column, then erase to the end of the line.
  if (terminal && drawn) std::fputs("\r\033[K", options.to);
  drawn = false;
}

void Progress::Impl::draw() {
  if (terminal) {
    // One column stays free: some terminals wrap when the last one is written, and the line could not be erased.
    const size_t room = std::max<size_t>(columns(options.to), 2) - 1;
    const std::string name = shortened(label, room);
    const std::string rest = shortened(text(), room - std::min(room, name.size()));
    clear();
    std::fputs((colour ? "\033[1m" + name + "\033[0m" + rest : name + rest).c_str(), options.to);
    drawn = true;
  } else {
    std::fputs((label + text() + "\n").c_str(), options.to);
  }
  std::fflush(options.to);
  last_draw = Clock::now();
}

Progress::Progress(std::string label, int64_t total, std::string unit, ProgressOptions options)
    : impl_(new Impl{.label = std::move(label), .total = total, .unit = std::move(unit), .options = options}) {
  Impl& m = *impl_;
  const char* no_color = std::getenv("NO_COLOR");
  m.terminal = options.terminal.value_or(is_terminal(options.to));
  m.colour = m.terminal && (no_color == nullptr || *no_color == '\0');
  m.done = m.last_done = options.first;
}
Progress::~Progress() { finish(); }

void Progress::update(int64_t done, const std::string& details) {
  Impl& m = *impl_;
  m.done = done;
  m.details = details;
  const double interval = m.since(m.last_rate);
  // Shorter intervals would make the rate jump with the clock's and the scheduler's noise.
  if (interval >= 0.05 && done > m.last_done) {
    const double now = static_cast<double>(done - m.last_done) / interval;
    // During the first half minute, the rate is the mean so far.
    const double weight = std::max(1 - std::exp(-interval / 30), interval / std::max(m.since(m.start), interval));
    m.rate += std::min(weight, 1.0) * (now - m.rate);
    m.last_rate = Clock::now();
    m.last_done = done;
  }
  if (m.since(m.last_draw) >= (m.terminal ? m.options.redraw_seconds : m.options.plain_seconds)) m.draw();
}

void Progress::message(const std::string& line, std::FILE* to) {
  Impl& m = *impl_;
  const bool again = m.drawn;
  m.clear();
  if (to == nullptr) to = m.options.to;
  // The two streams may be one terminal: what was written first must appear first.
  if (to != m.options.to) std::fflush(m.options.to);
  std::fputs((line + "\n").c_str(), to);
  if (to != m.options.to) std::fflush(to);
  if (again && m.terminal) m.draw();
  std::fflush(m.options.to);
}

void Progress::finish() {
  Impl& m = *impl_;
  if (m.finished) return;
  m.finished = true;
  m.draw();
  if (m.terminal) std::fputs("\n", m.options.to);
  std::fflush(m.options.to);
}

}  // namespace nacre::training
