#include "rate.h"

#include <array>
#include <charconv>
#include <cmath>
#include <string>

#include "arguments.h"
#include "nacre/error.h"

namespace nacre::program {
namespace {

std::string text(double x) {
  std::array<char, 32> digits{};
  return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), x).ptr};
}

/// Rounded up to whole bit/s, so that --bitrate with this number allows the codebooks. The bitrate is a quotient of
/// whole numbers; 2^-50 is above its rounding.
std::string kilobits(const CodecConfig& config, int64_t codebooks) {
  return text(std::ceil(config.nominal_bitrate(codebooks) * (1 - 0x1p-50)) / 1000) + " kbit/s (" +
         std::to_string(codebooks) + (codebooks == 1 ? " codebook)" : " codebooks)");
}

}  // namespace

void RateOptions::add_to(CLI::App& app, const char* codebooks_help) {
  app.add_option("--n-codebooks,--n_codebooks", n_codebooks, codebooks_help)->check(between(1, 64));
  app.add_option("--bitrate", bitrate,
                 "kbit/s of the channels that are coded together: use as many codebooks as do not exceed it, without "
                 "the container")
      ->check(above_zero());
}

void RateOptions::check() const {
  if (n_codebooks && bitrate)
    throw Error(ErrorKind::usage,
                "--n-codebooks and --bitrate both choose the number of codebooks; expected one of them");
}

int64_t RateOptions::codebooks(const CodecConfig& config) const {
  if (n_codebooks && *n_codebooks > config.n_codebooks)
    throw Error(ErrorKind::usage, "--n-codebooks is '" + std::to_string(*n_codebooks) + "', expected 1 to " +
                                      std::to_string(config.n_codebooks) + ", the codebooks of the model");
  if (!bitrate) return n_codebooks.value_or(0);
  const int64_t within = config.codebooks_within(1000 * *bitrate);
  if (within < 1)
    throw Error(ErrorKind::usage, "--bitrate is '" + text(*bitrate) +
                                      "', below the bitrate of one codebook; expected " + kilobits(config, 1) +
                                      (config.n_codebooks > 1 ? " to " + kilobits(config, config.n_codebooks) : ""));
  return within;
}

}  // namespace nacre::program
