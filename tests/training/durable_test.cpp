// A finished file survives a power cut. A checkpoint is finished after it was read back.
#include <cmath>

#include "files/call_log.h"
#include "files/faults.h"
#include "harness.h"
#include "nacre/codec/codec.h"
#include "nacre/coding/codec_files.h"
#include "nacre/data/audio.h"
#include "nacre/error.h"
#include "nacre/files/checkpoint_store.h"
#include "nacre/files/safetensors.h"

using namespace nacre;
using namespace nacre::test;

namespace {

CheckpointContent content(int64_t step) {
  CheckpointContent c;
  for (const char* name : {"model.safetensors", "optimizer.safetensors"})
    c.files.push_back({name, [step, name](const ByteSink& sink) {
                         sink(bytes_of(name + std::to_string(step)));
                         sink(bytes_of(std::string(300'000, 'x')));  // more than a buffer
                       }});
  c.manifest = "{\"seed\": 7}";
  return c;
}

Codec tiny(Context& ctx) {
  CodecConfig c;
  c.encoder_dim = 4, c.encoder_rates = c.decoder_rates = {2, 2}, c.decoder_dim = 16, c.dilations = {1};
  c.n_codebooks = 2, c.codebook_size = 16, c.codebook_dim = 4;
  Codec codec(ctx, c);
  codec.parameters().initialise(ctx, 1);
  return codec;
}

training::Audio sound() {
  std::vector<float> x(3000);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 0.5f * std::sin(0.05f * static_cast<float>(i));
  return {.samples = x, .sample_rate = 16000, .channels = 1};
}

}  // namespace

TEST_CASE("a checkpoint and its manifest are on the disk before they count", "[durable]") {
  const Folder folder;
  CheckpointStore store(folder / "run");
  CallLog log;
  const auto saved = store.save(1, content(1));
  expect_durable(log, saved.path);
  const Call& rename = log.calls()[log.rename_to(saved.path)];
  CHECK(rename.content.count("manifest.json") == 1);
  CHECK(rename.content.size() == 3);
}

TEST_CASE("a checkpoint is read back before it counts, and counts before an older one goes", "[durable]") {
  const Folder folder;
  CheckpointStore store(folder / "run", {.keep_last = 2});
  for (const int64_t step : {1, 2}) store.save(step, content(step));
  CallLog log;
  const auto saved = store.save(3, content(3));
  REQUIRE(saved.removed == std::vector<int64_t>{1});
  const size_t none = log.calls().size(), renamed = log.rename_to(saved.path);
  REQUIRE(renamed < none);
  for (const auto& [name, bytes] : log.calls()[renamed].content) {
    INFO(name);
    const std::filesystem::path file = log.calls()[renamed].path / name;
    const size_t read = log.last(Call::read, file, renamed);
    REQUIRE(read < none);
    CHECK(read > log.last(Call::sync, file, renamed));
  }
  // Nothing is renamed or removed until the folder has the name of the new one.
  const size_t placed = log.last(Call::sync_folder, saved.path.parent_path(), none);
  REQUIRE(placed < none);
  for (size_t i = 0; i < none; ++i) {
    const Call& c = log.calls()[i];
    if (c.kind == Call::unlink || (c.kind == Call::rename && i != renamed)) CHECK(i > placed);
  }
}

TEST_CASE("a checkpoint that the disk did not keep as it was written does not count", "[durable]") {
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "manifest.json"}) {
    INFO(name);
    const Folder folder;
    CheckpointStore store(folder.path(), {.keep_last = 2});
    for (const int64_t step : {1, 2}) store.save(step, content(step));
    {
      CallLog log;
      log.spoil(name);
      CHECK_THROWS_WITH(store.save(3, content(3)), Catch::Contains(name) && Catch::Contains("CRC"));
    }
    CHECK(list_checkpoints(folder.path()) == std::vector<int64_t>{1, 2});
    for (const char* step : {"step-00000001", "step-00000002"}) CHECK_NOTHROW(verify_checkpoint(folder / step));
    CHECK(folder.count() == 3);  // the lock and two checkpoints
    CHECK(store.save(3, content(3)).removed == std::vector<int64_t>{1});
  }
}

TEST_CASE("models, streams and sounds are on the disk when the call is over", "[durable]") {
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = tiny(ctx);
  training::FileCodec files(codec);
  const std::filesystem::path at = std::filesystem::canonical(folder.path());
  for (const bool exists : {false, true}) {  // a new file, and one that replaces another
    INFO(exists);
    CallLog log;
    codec.save(at / "model.safetensors");
    expect_durable(log, at / "model.safetensors");
    training::write_wav(at / "sound.wav", sound());
    expect_durable(log, at / "sound.wav");
    files.encode(at / "sound.wav", at / "sound.nacre");
    expect_durable(log, at / "sound.nacre");
    files.decode(at / "sound.nacre", at / "decoded.wav");
    expect_durable(log, at / "decoded.wav");
    files.decode(at / "sound.nacre", at / "decoded-float.wav", {.format = training::WavFormat::float32});
    expect_durable(log, at / "decoded-float.wav");
    write_file_atomically(at / "config.json", "{}\n");
    expect_durable(log, at / "config.json");
    const StoredTensor none{"nothing", Dtype::f32, {0}, {}};
    write_safetensors(at / "tensors.safetensors", std::vector<StoredTensor>{none});
    expect_durable(log, at / "tensors.safetensors");
  }
}

TEST_CASE("whichever call fails, a stream is whole or the call is an error", "[durable]") {
  const Folder folder;
  Context ctx({.threads = 1});
  Codec codec = tiny(ctx);
  training::FileCodec files(codec);
  training::write_wav(folder / "sound.wav", sound());
  for (const int error : {EIO, EINTR, ENOSPC}) {
    for (int n = 0; n < 100; ++n) {
      bool happened = false, failed = false;
      {
        Faults faults({n, error, false});
        try {
          files.encode(folder / "sound.wav", folder / "out.nacre");
        } catch (const Error& e) {
          failed = true;
          CHECK(e.kind() == ErrorKind::io);
        }
        happened = faults.happened();
      }
      INFO("call " << n << ", errno " << error);
      CHECK((failed || std::filesystem::exists(folder / "out.nacre")));
      if (happened && error != EINTR) CHECK(failed);
      std::filesystem::remove(folder / "out.nacre");
      CHECK(folder.count() == 1);
      if (!happened) {
        CHECK(n >= 6 + 3);  // create, fsync, close, rename, open the folder, fsync; the stream's head, packets, end
        break;
      }
    }
  }
}
