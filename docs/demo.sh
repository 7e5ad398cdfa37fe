#!/bin/bash
# Usage: docs/demo.sh CHAINFS
#
# Builds a tree of backups as CloudStack's NAS provider lays it out, mounts it,
# deletes a backup in the middle of a chain with plain rm, and proves that all
# others read as before. Needs root. Leaves nothing behind.
set -euo pipefail

PATH=$(dirname "$(realpath "$1")"):$PATH
work=$(mktemp -d)
nas=$work/nas mnt=$work/mnt
# What is shown is the same on every machine; the README has it.
export CHAINFS_STORE=$work/store TZ=UTC LC_ALL=C

cleanup() {
	cd /
	if mountpoint -q "$mnt"; then
		chainfs umount "$mnt" || umount -l "$mnt"
	fi
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

say() { printf '\n# %s\n' "$*"; }
run() { # shows a command and runs it; its failure is shown, not fatal
	printf '$ %s\n' "$*"
	local status=0
	"$@" 2>&1 || status=$?
	[ "$status" -eq 0 ] || printf '[exit status %d]\n' "$status"
	last=$status
}
die() { printf '\ndemo failed: %s\n' "$*" >&2; exit 1; }

# write IMAGE N PATTERN: 3 MiB of data, a part of it over what the backup before wrote.
write() {
	qemu-io -f qcow2 -c "write -P $3 ${2}M 2M" -c "write -P $3 $((40 + $2 % 4))M 1M" "$1" >/dev/null
}

# disk VM NAME SEED: a full and four incrementals of one disk.
disk() {
	local n=0 day parent= image
	for day in 01 02 03 04 05; do
		n=$((n + 1))
		image=$nas/$1/2026.03.$day.02.00.00/$2.qcow2
		mkdir -p "$(dirname "$image")"
		if [ -z "$parent" ]; then
			qemu-img create -q -f qcow2 "$image" 64M
		else
			qemu-img create -q -f qcow2 -F qcow2 -b "../$parent/$2.qcow2" "$image"
		fi
		write "$image" "$n" $(($3 + n))
		touch -d "2026-03-$day 02:00" "$image"
		echo "<domainbackup/>" >"$(dirname "$image")/domain-config.xml"
		parent=2026.03.$day.02.00.00
	done
}

# contents DIR: a checksum of what a guest would read, for each backup in DIR.
contents() {
	local image
	find "$1" -name '*.qcow2' | sort | while read -r image; do
		qemu-img convert -f qcow2 -O raw "$image" "$work/flat"
		printf '%s  %s\n' "$(sha256sum <"$work/flat" | cut -c1-16)" "${image#"$1"/}"
	done
	rm -f "$work/flat"
}

mkdir -p "$nas" "$mnt"
disk i-2-10-VM root.5f1c 10
disk i-2-10-VM datadisk.77ab 20
disk i-2-11-VM root.90de 30

say "Two virtual machines, one with two disks: a full and four incrementals each"
cd "$work"
run chainfs mount nas mnt
[ "$last" -eq 0 ] || die "the mount failed"
run chainfs tree mnt
contents mnt >before

say "Delete a backup in the middle of two chains, with plain rm"
gone=i-2-10-VM/2026.03.03.02.00.00
run rm -r "mnt/$gone"
[ "$last" -eq 0 ] || die "rm failed"
[ ! -e "nas/$gone" ] || die "$gone is still on the NAS"

say "What was above it stands on what was below it"
run chainfs tree mnt/i-2-10-VM

say "Every other backup reads as before, through the mount and without it (qemu-img convert -O raw | sha256sum)"
grep -v "$gone" before >expected
contents mnt >after
contents nas >direct
cmp expected after || die "a backup changed"
cmp expected direct || die "a backup changed on the NAS"
run cat after
echo "$(wc -l <after) of $(wc -l <expected) backups read as before"

say "A full on which others stand is not deleted"
full=i-2-11-VM/2026.03.01.02.00.00
run rm -r "mnt/$full"
[ "$last" -ne 0 ] || die "the full was deleted"
run chainfs why "mnt/$full/root.90de.qcow2"
[ "$last" -eq 3 ] || die "why does not say refused"

say "All is well"
run chainfs check mnt
[ "$last" -eq 0 ] || die "check has findings"
run chainfs umount mnt
[ "$last" -eq 0 ] || die "umount failed"
