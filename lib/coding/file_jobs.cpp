// Assignment of input files to output files.
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "data/folder_scan.h"
#include "data/sniff.h"
#include "nacre/coding/codec_files.h"

namespace nacre::training {
namespace {

namespace fs = std::filesystem;

bool is_stream(const std::string& name) { return name.ends_with(".nacre") || name.ends_with(".ecdc"); }

/// The name of the output for the name of an input, both below the folders that were given.
std::string renamed(const std::string& name, FileKind from, const MatchOptions& options) {
  if (from == FileKind::stream) {
    const std::string plain = is_stream(name) ? name.substr(0, name.rfind('.')) : name;
    return plain.ends_with(".wav") ? plain : plain + ".wav";
  }
  // Only known extensions are removed: "take.2" keeps its ".2".
  return (has_audio_extension(name) && !options.keep_ending ? name.substr(0, name.rfind('.')) : name) +
         (options.format == StreamFormat::ecdc ? ".ecdc" : ".nacre");
}

enum class Place : uint8_t { nothing, file, folder, other };
Place place_of(const std::string& path) {
  struct stat status {};
  if (path == "-") return Place::other;
  if (::stat(path.c_str(), &status) != 0) return Place::nothing;
  return S_ISREG(status.st_mode) ? Place::file : S_ISDIR(status.st_mode) ? Place::folder : Place::other;
}

bool is_same_file(const std::string& a, const std::string& b) {
  std::error_code failed;
  return a == b || (fs::equivalent(a, b, failed) && !failed);
}

/// The last component of a path, also of "a/b/" and "..".
std::string last_part(const std::string& path) {
  const std::string name = fs::path(path).filename().string();
  if (!name.empty() && name != "." && name != "..") return name;  // a symbolic link keeps its own name
  std::error_code failed;
  const fs::path whole = fs::weakly_canonical(path, failed);
  return (failed || whole.filename().empty() ? fs::path(path).filename() : whole.filename()).string();
}

}  // namespace

FileJobs find_files(const std::vector<std::string>& inputs, FileKind kind) {
  FileJobs found;
  found.several = inputs.size() > 1;
  int piped = 0;
  for (const std::string& in : inputs) {
    if (in == "-" && ++piped > 1) throw Error(ErrorKind::usage, "standard input (-) can be given only once");
    // Also a file that does not exist: opening it gives the message.
    if (place_of(in) != Place::folder) {
      found.jobs.push_back({in, in == "-" ? in : last_part(in)});
      continue;
    }
    // With several inputs, outputs keep the name of their folder, so that equal names below do not meet.
    const bool many = inputs.size() > 1;
    found.several = true;
    try {
      const FolderScan scan = scan_folder(in, kind == FileKind::audio ? has_audio_extension : is_stream);
      for (const BadFile& bad : scan.bad)
        found.refused.emplace_back(ErrorKind::input, in + "/" + bad.path + ": " + bad.reason);
      if (scan.files.empty())
        found.refused.emplace_back(ErrorKind::input,
                                   in + ": no " + (kind == FileKind::audio ? "audio files" : ".nacre or .ecdc files") +
                                       " in this folder" +
                                       about_folder(in, kind == FileKind::audio ? Thing::audio : Thing::stream));
      const std::string head = in.ends_with('/') ? in : in + "/";
      for (const std::string& below : scan.files)
        found.jobs.push_back({head + below, many ? last_part(in) + "/" + below : below, true});
    } catch (const Error& e) {
      found.refused.push_back(e);
    }
  }
  return found;
}

FileJobs match_files(const std::vector<std::string>& inputs, const std::string& output, FileKind from,
                     MatchOptions options) {
  if (output.empty()) throw Error(ErrorKind::usage, "-o: the name is empty");
  FileJobs jobs = find_files(inputs, from);
  const Place place = place_of(output);
  // Whether the output is a folder, which may not exist yet.
  const bool into = jobs.several || place == Place::folder || output.ends_with('/');
  if (into && output == "-") throw Error(ErrorKind::usage, "-o -: standard output takes one file, not several");
  if (into && (place == Place::file || place == Place::other))
    throw Error(ErrorKind::usage, "-o " + output + ": is not a folder; several inputs need an output folder");
  std::vector<FileJob> good;
  // Outputs and the different inputs that would become them. Two inputs for one output are both refused, whatever their
  // order.
  std::map<std::string, std::vector<std::string>> taken;
  for (FileJob& job : jobs.jobs) {
    if (into && job.in == "-")
      throw Error(ErrorKind::usage,
                  "-o " + output +
                      ": standard input has no file name, so it cannot be written to a folder; give it as the only "
                      "input, with the name of an output file");
    job.make_folders = into;
    job.out = into ? output + (output.ends_with('/') ? "" : "/") + renamed(job.out, from, options) : output;
    std::vector<std::string>& same = taken[job.out];
    // A file that was named twice counts as one input.
    if (std::any_of(same.begin(), same.end(), [&](const std::string& other) { return is_same_file(other, job.in); }))
      // Left out below.
      job.in.clear();
    else
      same.push_back(job.in);
  }
  // Nothing has been written yet: all names are settled before the first file is coded.
  for (FileJob& job : jobs.jobs) {
    if (job.in.empty()) continue;
    const Place there = place_of(job.out);
    if (there == Place::folder) {
      jobs.refused.emplace_back(ErrorKind::usage, job.in + ": " + job.out + " is a folder");
    } else if (there == Place::file && job.in != "-" && is_same_file(job.in, job.out)) {
      jobs.refused.emplace_back(ErrorKind::usage, job.in + ": would be overwritten by its own output");
    } else if (there == Place::file && !options.overwrite) {
      jobs.refused.emplace_back(ErrorKind::usage, job.in + ": " + job.out + " exists; -f overwrites it");
    } else if (const std::vector<std::string>& same = taken[job.out]; same.size() > 1) {
      // `job` is one of the entries, so the message names another.
      const std::string& other = same[0] == job.in ? same[1] : same[0];
      jobs.refused.emplace_back(ErrorKind::usage,
                                job.in + ": would be written to " + job.out + ", as would " + other +
                                    (from == FileKind::audio ? "; --keep-ending gives them different names" : ""));
    } else {
      good.push_back(std::move(job));
    }
  }
  jobs.jobs = std::move(good);
  return jobs;
}

}  // namespace nacre::training
