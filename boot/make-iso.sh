#!/usr/bin/env bash
# make-iso.sh TOOLS KERNEL ISO: an image that boots by BIOS and by UEFI, from a CD or a USB stick.
#
# TOOLS is the folder that qemu/get-grub.sh prints. What grub-mkrescue does is done here step by step:
# it takes GRUB's modules for one kind of firmware only where they are not the machine's own, and all of
# them, where two dozen do.
set -euo pipefail

tools=$1 kernel=$2 iso=$3
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
label=LONGSHORE
# What the menu needs, and a little for whoever looks around in GRUB's command line.
modules=(iso9660 search_label normal configfile multiboot2 eval regexp smbios test
    serial terminal all_video videoinfo echo cat ls lsmmap reboot halt)

work=$(mktemp -d "$iso.XXXXXX")
trap 'rm -rf "$work"' EXIT
export MTOOLS_SKIP_CHECK=1

# quietly COMMAND…: what it says is of interest only where it fails.
quietly() {
    "$@" >"$work/log" 2>&1 && return
    echo "make-iso: ${1##*/} failed: $(tail -n1 "$work/log")" >&2
    exit 1
}

# image FORMAT PLATFORM FILE MODULE…
image() {
    local format=$1 platform=$2 file=$3
    shift 3
    quietly "$tools/bin/grub-mkimage" -O "$format" -d "$tools/lib/grub/$platform" -o "$file" \
        -p /boot/grub -c "$work/early.cfg" "${modules[@]}" "$@"
}

mkdir -p "$work/tree/boot/grub"
# CD or stick, whatever the firmware calls it.
cat >"$work/early.cfg" <<CONFIG
search.fs_label $label root
set prefix=(\$root)/boot/grub
CONFIG
cp "$kernel" "$work/tree/boot/longshore.elf"
cp "$here/grub.cfg" "$work/tree/boot/grub/grub.cfg"
image i386-pc-eltorito i386-pc "$work/tree/boot/grub/bios.img" biosdisk
image x86_64-efi x86_64-efi "$work/BOOTX64.EFI"
efi=$work/tree/boot/grub/efi.img
quietly "$tools/bin/mformat" -C -i "$efi" -f 2880 ::
quietly "$tools/bin/mmd" -i "$efi" ::/EFI ::/EFI/BOOT
quietly "$tools/bin/mcopy" -i "$efi" "$work/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI
quietly "$tools/bin/xorriso" -as mkisofs -r -V "$label" -o "$work/iso" \
    -b boot/grub/bios.img -no-emul-boot -boot-load-size 4 -boot-info-table --grub2-boot-info \
    --grub2-mbr "$tools/lib/grub/i386-pc/boot_hybrid.img" --protective-msdos-label \
    --efi-boot boot/grub/efi.img -efi-boot-part --efi-boot-image "$work/tree"
mv "$work/iso" "$iso"
