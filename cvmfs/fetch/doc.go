// Package fetch gets files of a repository over HTTP, from whichever of its servers and through whichever of its
// proxies works.
//
// The words used here:
//
//   - A server is a base URL that holds the whole repository, usually http://HOST/cvmfs/FQRN. A repository has a chain of
//     servers with the same content; the first that works is used. A server may be a folder: file:///srv/FQRN.
//   - A proxy is an HTTP cache on the way, or "DIRECT", which means none. Proxies stand in groups: within a group one member is
//     chosen at random and kept while it works, groups are used in the order given.
//   - A route is a server together with a proxy. A request walks over routes: all proxies for one server, then the next server.
//   - An attempt is one HTTP exchange on one route.
//
// # Who is at fault
//
// A failed attempt is laid at somebody's door, and that decides what is tried next (the rules are those of the
// CernVM-FS client, network/download.cc):
//
//	no connection, a stall, a broken transfer   the proxy, or the server where there is none; retried with back-off first
//	X-Squid-Error, Proxy-Status: … error=…      the proxy
//	5xx, 400, 404, 429                          the server
//	other answers that aren't 200               the proxy, or the server where there is none
//	a short body, or one the caller refuses     the data: once more past all caches, then the next server
//
// An object is missing (fs.ErrNotExist) only after every server said so.
//
// # What is dead is paid for once
//
// Whoever fails is passed over by later requests until its reset time. One that failed by not answering within its time
// is moreover in a cool-down, which starts at Config.BackoffInit and doubles with every further failure up to
// Config.BackoffMax: before its end nobody tries it, and at its end one request does while the others go on as if it
// had not ended. Where no route is left, requests fail at once with ErrUnavailable. So, however many files are asked
// for, a dead server or proxy costs one bounded wait, and afterwards one a cool-down, in a single request. Any success
// ends all this.
//
// Every wait is bounded and ends with the caller's context: connecting by the route's timeout, and so is a transfer
// during which nothing arrives; a transfer that brings fewer than Config.LowSpeedLimit bytes a second over that time is
// cut, too.
//
// A proxy's or server's name with several addresses is left to net.Dialer, which tries them in turn within the one
// timeout.
package fetch
