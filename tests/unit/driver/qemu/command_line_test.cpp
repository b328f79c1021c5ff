#include "lararium/driver/qemu/command_line.h"

#include <gtest/gtest.h>

namespace lararium::qemu {
namespace {

// Arguments are separated by blanks here, and end with NUL each as the kernel has them.
CommandLine parse(std::string_view text) {
  std::string arguments = "qemu-system-x86_64";
  arguments.push_back('\0');
  for (const char c : text)
    arguments.push_back(c == ' ' ? '\0' : c);
  arguments.push_back('\0');
  return parse_command_line(arguments);
}

constexpr std::uint64_t mib = 1 << 20;
constexpr std::uint64_t gib = 1 << 30;

TEST(CommandLine, Names) {
  EXPECT_EQ(parse("-name web").name, "web");
  EXPECT_EQ(parse("-name guest=web,debug-threads=on").name, "web");
  EXPECT_EQ(parse("-name web,process=x").name, "web");
  EXPECT_EQ(parse("--name web").name, "web");
  EXPECT_EQ(parse("-name guest=a,,b").name, "a,b");
  EXPECT_EQ(parse("-uuid ABCDEF01-0000-0000-0000-000000000001").uuid, "abcdef01-0000-0000-0000-000000000001");
  EXPECT_EQ(parse("-smbios type=1,manufacturer=x,uuid=0A").uuid, "0a");
}

TEST(CommandLine, RamSizes) {
  const std::pair<const char *, std::uint64_t> cases[] = {
      {"-m 512", 512 * mib},
      {"-m 512M", 512 * mib},
      {"-m 4G", 4 * gib},
      {"-m 1.5G", 3 * gib / 2},
      {"-m 1048576k", gib},
      {"-m size=2G,slots=4,maxmem=8G", 2 * gib},
      {"-m 2048,slots=4,maxmem=8G", 2 * gib},
      {"-m size=2097152k", 2 * gib},
      {"-m 512 -m 1G", gib},
      {"-m nonsense", 0},
      {"-m 99999999999999999999", 0},
      {"-m 16E16E", 0},
      {"-m", 0},
  };
  for (const auto &[text, size] : cases)
    EXPECT_EQ(parse(text).ram_size, size) << text;
  EXPECT_TRUE(parse("-m 2048,slots=4,maxmem=8G").ram_hotpluggable);
  EXPECT_FALSE(parse("-m 2048").ram_hotpluggable);
}

TEST(CommandLine, Vcpus) {
  EXPECT_EQ(parse("-smp 2").vcpus, 2u);
  EXPECT_EQ(parse("-smp cpus=3,sockets=1,cores=3").vcpus, 3u);
  EXPECT_EQ(parse("-smp 4,sockets=4,cores=1,threads=1").vcpus, 4u);
  EXPECT_EQ(parse("-smp sockets=2,cores=3,threads=2").vcpus, 12u);
  EXPECT_EQ(parse("-smp maxcpus=8").vcpus, 8u);
  EXPECT_EQ(parse("-smp sockets=4294967295,cores=4294967295,threads=4294967295").vcpus, 1u << 20);
  EXPECT_EQ(parse("").vcpus, 0u);
}

TEST(CommandLine, MachineAndAccelerator) {
  const auto line = parse("-machine pc-q35-7.2,accel=kvm:tcg,usb=off,memory-backend=pc.ram,max-ram-below-4g=2G");
  EXPECT_EQ(line.machine, "pc-q35-7.2");
  EXPECT_EQ(line.accelerators, (std::vector<std::string>{"kvm", "tcg"}));
  EXPECT_EQ(line.main_backend, "pc.ram");
  EXPECT_EQ(line.max_ram_below_4g, 2 * gib);
  EXPECT_EQ(parse("-M q35").machine, "q35");
  EXPECT_EQ(parse("-machine type=microvm,x-option-roms=off").machine, "microvm");
  EXPECT_EQ(parse("-accel tcg,thread=multi").accelerators, std::vector<std::string>{"tcg"});
  EXPECT_EQ(parse("-enable-kvm").accelerators, std::vector<std::string>{"kvm"});
}

TEST(CommandLine, ValuesAreNotTakenForOptions) {
  // The kernel's command line of -append is one argument; a flag takes none.
  std::string arguments = "qemu";
  for (const std::string word : {"", "-nographic", "-append", "-m 5", "-m", "64", "-no-reboot", "-smp", "2"})
    arguments += word + '\0';
  const auto line = parse_command_line(arguments);
  EXPECT_EQ(line.ram_size, 64 * mib);
  EXPECT_EQ(line.vcpus, 2u);
}

TEST(CommandLine, Monitors) {
  using Transport = MonitorAddress::Transport;
  const auto one = [](std::string_view text) {
    const auto monitors = parse(text).monitors;
    EXPECT_EQ(monitors.size(), 1u) << text;
    return monitors.empty() ? MonitorAddress{} : monitors[0];
  };
  const MonitorAddress qmp{.protocol = MonitorProtocol::qmp, .transport = Transport::unix_path, .path = "/a"};
  EXPECT_EQ(one("-qmp unix:/a,server=on,wait=off"), qmp);
  EXPECT_EQ(one("-qmp unix:/a,server,nowait"), qmp);
  EXPECT_EQ(one("-chardev socket,id=m,path=/a,server=on,wait=off -mon chardev=m,mode=control"), qmp);
  EXPECT_EQ(one("-mon chardev=m,mode=control -chardev socket,id=m,path=/a,server=on"), qmp);
  EXPECT_EQ(one("-mon m,mode=control -chardev socket,id=m,path=/a,server=on"), qmp);
  EXPECT_EQ(one("-qmp chardev:m -chardev socket,id=m,path=/a,server"), qmp);
  const auto hmp = one("-monitor unix:/b,server,nowait");
  EXPECT_EQ(hmp.protocol, MonitorProtocol::hmp);
  EXPECT_EQ(hmp.path, "/b");
  const auto tcp = one("-qmp tcp:127.0.0.1:4444,server=on,wait=off");
  EXPECT_EQ(tcp.transport, Transport::tcp);
  EXPECT_EQ(tcp.path, "127.0.0.1");
  EXPECT_EQ(tcp.port, 4444);
  const auto inherited = one("-chardev socket,id=charmonitor,fd=23,server=on,wait=off "
                             "-mon chardev=charmonitor,id=monitor,mode=control");
  EXPECT_EQ(inherited.transport, Transport::descriptor);
  EXPECT_EQ(inherited.descriptor, 23);
  // Monitors that call out, or that no one can reach.
  EXPECT_TRUE(parse("-qmp unix:/a -monitor stdio -qmp tcp:127.0.0.1:1 -monitor none").monitors.empty());
  // QMP comes first.
  const auto both = parse("-monitor unix:/b,server -qmp unix:/a,server").monitors;
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0].protocol, MonitorProtocol::qmp);
}

TEST(CommandLine, MemoryBackends) {
  const auto line =
      parse("-object memory-backend-memfd,id=a,size=512M -object memory-backend-ram,id=b,size=1G "
            "-object memory-backend-file,id=c,size=1G,mem-path=/dev/shm/x,share=on "
            "-object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"d\",\"size\":1073741824,\"share\":false} "
            "-numa node,nodeid=1,memdev=b -numa node,nodeid=0,memdev=a "
            "-device pc-dimm,id=x,memdev=c -device {\"driver\":\"pc-dimm\",\"memdev\":\"d\"} "
            "-device ivshmem-plain,memdev=e");
  ASSERT_EQ(line.backends.size(), 4u);
  EXPECT_TRUE(line.backends[0].shared); // memfd's default
  EXPECT_EQ(line.backends[0].size, 512 * mib);
  EXPECT_FALSE(line.backends[1].shared);
  EXPECT_TRUE(line.backends[2].shared);
  EXPECT_EQ(line.backends[2].path, "/dev/shm/x");
  EXPECT_EQ(line.backends[3].kind, "memory-backend-memfd");
  EXPECT_EQ(line.backends[3].size, gib);
  EXPECT_FALSE(line.backends[3].shared);
  EXPECT_EQ(line.numa_backends, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(line.dimm_backends, (std::vector<std::string>{"c", "d"}));
  EXPECT_EQ(line.shared_backends, (std::vector<std::string>{"e"}));
  EXPECT_EQ(parse("-M q35,memory-backend=r -object memory-backend-ram,id=r,size=256M").ram_size, 256 * mib);
}

TEST(CommandLine, ConfidentialGuests) {
  EXPECT_EQ(parse("-object sev-guest,id=s,cbitpos=47").confidential, "sev-guest");
  EXPECT_EQ(parse("-object {\"qom-type\":\"tdx-guest\",\"id\":\"t\"}").confidential, "tdx-guest");
  EXPECT_FALSE(parse("-machine q35,confidential-guest-support=x").confidential.empty());
  EXPECT_EQ(parse("-object rng-random,id=r").confidential, "");
}

TEST(CommandLine, LibvirtIsRecognised) {
  EXPECT_EQ(parse("-object {\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"format\":\"raw\",\"file\":"
                  "\"/var/lib/libvirt/qemu/domain-1-web/master-key.aes\"}")
                .libvirt_folder,
            "/var/lib/libvirt/qemu/domain-1-web");
}

} // namespace
} // namespace lararium::qemu
