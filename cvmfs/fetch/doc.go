// Package fetch gets files of a repository over HTTP, from whichever of its servers and through whichever of its
// proxies works.
//
// The words used here:
//
//   - A server is a base URL that holds the whole repository, usually http://HOST/cvmfs/FQRN. A repository has a chain
//     of servers with the same content; the first that works is used. A server may be a folder: file:///srv/FQRN.
//   - A proxy is an HTTP cache on the way, or "DIRECT", which means none. Proxies stand in groups: within a group one
//     member is chosen at random and kept while it works, groups are used in the order given.
//   - A route is a server together with a proxy. A request walks over routes: all proxies for one server, then the next
//     server.
//   - An attempt is one HTTP exchange on one route.
//
// # Who is at fault
//
// A failed attempt is laid at somebody's door, and that decides what is tried next (as in the CernVM-FS client,
// network/download.cc, whose costs in failover_test.go are the most that is allowed here):
//
//	no connection, a stall            the proxy, or the server where there is none
//	a broken transfer                 the same, after a retry
//	a short body                      the same, after a retry past all caches
//	X-Squid-Error, Proxy-Status: … error=…, and codes not named below
//	                                  the proxy, or the server where there is none
//	5xx, 400, 429                     the server
//	404, a body the caller refuses    nobody yet; a refused body that came through a proxy is asked for past all caches first
//
// These are presumptions. A file that arrives is evidence: a server is at fault if the proxy that brought the file had
// failed with that server, a proxy is if the file came from the same server by another way, and what was presumed of
// the others is taken back. So a server that lacks files, or sends rubbish, loses its place to one that has them, and
// a proxy that says 404 or shows a login page is passed by, DIRECT if that is what comes next; but nobody is blamed for
// a file that nobody has.
//
// An object is missing (fs.ErrNotExist) only after every server said so. What fails on all routes because transfers
// failed is tried again after a back-off, Config.MaxRetries times in one request.
//
// # What is dead is paid for once
//
// Whoever fails is passed over by later requests until its reset time. One that failed by not answering within its time
// is moreover in a cool-down, which starts at Config.BackoffInit and doubles with every further failure up to
// Config.BackoffMax: before its end nobody tries it, and at its end one request does while the others go on as if it
// had not ended. Where no route is left, requests fail at once with ErrUnavailable. So, however many files are asked
// for, a dead server or proxy costs one bounded wait, and afterwards one a cool-down, in a single request. Any answer
// ends the cool-down; its place whoever failed gets back with the first file that was asked for after the failure.
//
// Every wait is bounded and ends with the caller's context: connecting by the route's timeout, and so is a transfer
// during which nothing arrives; a transfer that brings fewer than Config.LowSpeedLimit bytes a second over that time is
// cut, too.
//
// # Connections
//
// Those to a server or proxy are bounded, and become more only by being answered (connections.go, docs/adr/0014). What
// exceeds the bounds queues.
//
// # Geography
//
// With Geo.Use the first request waits for the order that one of the servers gives, of at most three that are asked.
// Where none tells it the configured order is used, and the question is repeated ten minutes later. Config.MaxServers
// counts in the order that is found. Servers of external files are put in order by the repository's.
//
// # Proxies that are found
//
// Where the configured proxies have the group "auto", the first request waits for a proxy auto-configuration script to
// say what stands for it (package pac). Where none can be had, what was found before is used, or else the other groups;
// scripts are asked again after an hour, or a minute where none answered, beside requests that go on.
//
// # Names
//
// A proxy's name is resolved before the first request, and again when Names.MinTTL is over, beside requests that go on
// with the addresses at hand. Each of its addresses is a proxy of its own, with a health of its own; so a name of which
// one address stalls costs that address's timeout once. A server's name is one server: connecting tries its addresses
// in turn within the one timeout, those that failed last.
package fetch
