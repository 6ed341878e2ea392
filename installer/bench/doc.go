// Package bench compares how an image and its thin one start on this host's engine: it pulls both in turn, runs them
// until they are ready, runs them again, and removes them.
//
// The words used here:
//
//   - An image's form is ordinary, as it was built, or thin. The same engine runs both, on our driver.
//   - A start is ready when the program has ended, has written a line, or answers at a port.
//   - Cold is a start of an image that the engine hasn't got: it was never pulled, or was removed, and with a thin one
//     went the objects that no other image names. What other images share with it stays, and is counted. Memory and
//     caches of the network are left as they are.
//   - A run is warm if the image was run before.
//
// Hosts in production are measured, too: what others have is never touched. Images that are there before are refused,
// nothing is removed by force but the containers made here, and the cache is left to itself.
package bench
