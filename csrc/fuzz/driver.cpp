// Feeds the fuzz target with inputs from a counter and a seed: the same on every machine, one process, no corpus.
//
//   fuzz [--seed N] [--inputs N] [--seconds S] [--first N]
//
// --seconds bounds the time where it is given; else --inputs are run. After a finding the number of the input is
// printed: `--first N --inputs 1` with the same seed runs it alone.
#include <sanitizer/asan_interface.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// hostsim keeps the shared memory of its kernels, and where ptrace is forbidden the leak check itself fails.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace {

uint64_t seed = 1, number = 0;

void print_place() {
  std::fprintf(stderr, "fuzz: found by --seed %llu --first %llu --inputs 1\n", static_cast<unsigned long long>(seed),
               static_cast<unsigned long long>(number));
}

void on_abort(int) {
  print_place();
  std::_Exit(1);
}

std::vector<uint8_t> input_of(uint64_t n) {
  std::seed_seq mixed{static_cast<uint32_t>(seed), static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32)};
  std::mt19937 random(mixed);
  std::vector<uint8_t> bytes(1 + random() % 400);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  bytes[0] = static_cast<uint8_t>(n);  // the operations in turn
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t inputs = 1000, first = 0;
  double seconds = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--seed") == 0) seed = std::strtoull(argv[i + 1], nullptr, 10);
    if (std::strcmp(argv[i], "--inputs") == 0) inputs = std::strtoull(argv[i + 1], nullptr, 10);
    if (std::strcmp(argv[i], "--first") == 0) first = std::strtoull(argv[i + 1], nullptr, 10);
    if (std::strcmp(argv[i], "--seconds") == 0) seconds = std::strtod(argv[i + 1], nullptr);
  }
  __asan_set_death_callback(&print_place);
  std::signal(SIGABRT, &on_abort);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  for (number = first; seconds > 0 ? passed() < seconds : number < first + inputs; ++number) {
    const std::vector<uint8_t> bytes = input_of(number);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("fuzz: %llu inputs of seed %llu in %.1f s\n", static_cast<unsigned long long>(number - first),
              static_cast<unsigned long long>(seed), passed());
  return 0;
}
