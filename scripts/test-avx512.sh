#!/bin/sh
# Runs the tests of the kernels on an emulated CPU that has AVX-512 with VNNI (a Tiger Lake in Bochs), for machines
# without. Takes some ten minutes. Exits with 0 if all pass, with 77 if what it needs is not installed:
#
#   apt-get install bochs bochsbios isolinux syslinux-common xorriso cpio
#
# and a Linux kernel: the file named by KERNEL, else Debian's for clouds, fetched with apt-get.
set -eu

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
work=$target/avx512
limit=${LIMIT:-1800} # seconds
mkdir -p "$work"
work=$(cd "$work" && pwd)

for tool in bochs xorriso cpio; do
    command -v "$tool" >/dev/null || { echo "test-avx512: no $tool" >&2; exit 77; }
done
for file in /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 /usr/share/bochs/BIOS-bochs-latest; do
    [ -f "$file" ] || { echo "test-avx512: no $file" >&2; exit 77; }
done

kernel=${KERNEL:-$work/vmlinuz}
if [ ! -f "$kernel" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$package" ] || { echo "test-avx512: no kernel" >&2; exit 77; }
    (cd "$work" && apt-get download "$package" && dpkg -x "$package"_*.deb package && rm "$package"_*.deb)
    mv "$work"/package/boot/vmlinuz-* "$kernel"
    rm -r "$work/package"
fi

# The test programs and the first process, without a need of anything else on the machine.
triple=x86_64-unknown-linux-gnu
rm -rf "$work/ram" "$work/iso"
mkdir -p "$work/ram/tests" "$work/ram/dev" "$work/iso"
RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" \
    cargo test --release -p graftwork-kernels --target "$triple" --no-run \
    --test simd --test linear --test rows --test attention 2>"$work/build.log" || { cat "$work/build.log" >&2; exit 1; }
sed -n 's/.*Executable tests\/\([a-z_]*\)\.rs (\(.*\)).*/\1 \2/p' "$work/build.log" | while read -r name path; do
    cp "$path" "$work/ram/tests/$name"
done
rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols -o "$work/ram/init" scripts/avx512/init.rs
(cd "$work/ram" && find . | cpio --quiet -o -H newc) >"$work/iso/initrd"

# Found by trying: Linux 6.1 takes the state of AVX-512 as Bochs 2.7 describes it only without protection keys and
# compacted state, and starts only without some other features and with the simplest timer and interrupts. No test
# needs any of them. Without a sound card, Bochs' driver for one ends it.
cp "$kernel" "$work/iso/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso"
cat >"$work/iso/isolinux.cfg" <<END
default linux
label linux
 kernel vmlinuz
 append initrd=initrd console=ttyS0 quiet clearcpuid=pku,xsaves,xsavec,rdpid,umip,fsrm,smap,smep nofsgsbase nolapic acpi=off idle=halt tsc=reliable lpj=1000000 8250.nr_uarts=1 lsm= mitigations=off nopti nokaslr
END
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
    -boot-info-table "$work/iso"
cat >"$work/bochsrc" <<END
config_interface: textconfig
display_library: rfb, options="timeout=0"
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=tigerlake, count=1, ips=20000000
clock: sync=none, time0=utc
megs: 512
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial.txt
log: $work/bochs.log
END
echo c >"$work/continue"

rm -f "$work/serial.txt"
bochs -q -f "$work/bochsrc" -rc "$work/continue" >"$work/bochs.out" 2>&1 </dev/null &
bochs=$!
trap 'kill $bochs 2>/dev/null || true' EXIT
seconds=0
until grep -qs '^avx512: \(all passed\|failed\)' "$work/serial.txt"; do
    if ! kill -0 $bochs 2>/dev/null || [ $seconds -ge "$limit" ]; then
        cat "$work/serial.txt"
        echo "test-avx512: ended without a result after $seconds seconds" >&2
        exit 1
    fi
    sleep 1
    seconds=$((seconds + 1))
done
cat "$work/serial.txt"
echo "test-avx512: $seconds seconds"
grep -q '^avx512: all passed' "$work/serial.txt"
