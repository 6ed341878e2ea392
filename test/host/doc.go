// Package host has the tests of whole hosts, from the installation of our package to its removal, with crashes, an
// upgrade and a reboot between: Debian 12 with its systemd and its Docker, which takes the plugin, and Debian's newest
// Docker, which takes the snapshotter. They change the machine they run on, so they are built for virtual machines
// alone (the tag guest); `make test-kernels` with SUITE=host boots them.
package host
