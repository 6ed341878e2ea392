// Package host has the tests of a whole host: Debian 12 with its systemd, its Docker and our package, from the
// installation to the removal, with crashes, an upgrade and a reboot between. They change the machine they run on, so
// they are built for virtual machines alone (the tag guest); `make test-kernels` boots one for them.
package host
