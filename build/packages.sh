#!/bin/sh
# Install the Debian packages that one step needs, and only those that are not there yet.
#
#   build/packages.sh build     to build and run
#   build/packages.sh dev       also to test, lint, fuzz and measure
#   build/packages.sh demo      also to play the demonstration with a broker
#   build/packages.sh vm        also to test on other kernels
#   build/packages.sh arm       also on other processors
#   build/packages.sh package   also to make and test the packages of a release
#
# Owns the lists. Refuses to know anything else. Needs root only when something is missing.
set -eu

BUILD="python3 python3-venv python3-dev gcc libc6-dev make pkg-config clang llvm libbpf-dev libelf-dev zlib1g-dev"
# bpftool: looks into objects, maps and links. libclang-rt-dev: the sanitizers and libFuzzer.
# util-linux: unshare. procps, iproute2: the truth that tests compare with. forkstat: the bench's rival.
# mosquitto, openssl, softhsm2, gnutls-bin, faketime: a broker, certificates, a PKCS#11 token and keys made in it, a clock
# that is set, to test publishing.
# nginx, fcgiwrap: a service with CGI programs, to learn from. btrfs-progs: a file system whose files have two devices.
# python3-bpfcc: compiles the hooks on the device, for kernels without BTF. A device needs it for that capture only.
DEV="bpftool clang-format clang-tidy cppcheck libclang-rt-dev binutils util-linux procps iproute2 forkstat
	mosquitto openssl softhsm2 gnutls-bin faketime nginx fcgiwrap btrfs-progs
	python3-bpfcc"
# The broker of the demonstration of publishing.
DEMO="mosquitto openssl"
# Virtual machines with other kernels.
VM="qemu-system-x86 mmdebstrap kmod busybox-static e2fsprogs debian-archive-keyring"
# Those of other processors, and compilers for what the tests run there.
ARM="qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"

# Debian's trees to install in, programs of other machines, its judge of packages, a builder of images without a daemon.
PACKAGE="mmdebstrap debian-archive-keyring dpkg-dev qemu-user-static lintian man-db buildah"

case "${1:-}" in
build) wanted=$BUILD ;;
dev) wanted="$BUILD $DEV" ;;
demo) wanted="$BUILD $DEMO" ;;
vm) wanted="$BUILD $DEV $VM" ;;
arm) wanted="$BUILD $DEV $VM $ARM" ;;
package) wanted="$BUILD $DEV $VM $PACKAGE" ;;
*)
	echo "usage: build/packages.sh build|dev|demo|vm|arm|package" >&2
	exit 2
	;;
esac

if ! command -v dpkg-query >/dev/null; then
	echo "build/packages.sh: this is not Debian or Ubuntu. Install by hand what these packages hold: $wanted" >&2
	exit 1
fi

# shellcheck disable=SC2086 # a list of words is meant
installed=$(dpkg-query -W -f='${Package}=${db:Status-Status}\n' $wanted 2>/dev/null | sed -n 's/=installed$//p' | tr '\n' ' ')
missing=
for package in $wanted; do
	case " $installed " in
	*" $package "*) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "build/packages.sh: missing:$missing. Run as root (sudo make ...), or install them yourself." >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# A package must not start its service here: the tests start their own. https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
install() {
	# shellcheck disable=SC2086 # a list of words is meant
	apt-get -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends $missing
}
echo "installing:$missing"
# Package lists may be absent or old: then ask for new ones and try again.
if ! install; then
	apt-get -o Acquire::Retries=5 update
	install
fi
