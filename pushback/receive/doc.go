// Package receive is the service that publishes what nodes make of containers: it takes layers, judges them, and puts
// them into a repository.
//
// The words used here, besides those of package api:
//
//   - A layer comes by one of two doors: as an object in a bucket, of which the store tells by an event or which a poll
//     finds, or by requests, as an upload.
//   - A record is what the service knows of a layer that came. It is a file, and says how far the layer has got: see
//     [State]. The archive itself is kept beside the records until it is published.
//   - A decision is what was made of a layer, and why: each is a line of the audit file.
//
// Nothing in an archive is trusted, nor what a node says of it: an archive is read to its end, and held to its digest,
// its diffID, the limits of the configuration and the rules of package layertar, before a transaction is begun for it.
// What lies in the bucket is believed to come from whoever may write there; a request comes from whoever has a token.
// An event isn't believed at all: it makes the service look.
//
// The service may be killed at any point. A record is replaced by a rename, after what it tells of was done. So what
// was begun is done again, and doing it again changes nothing: an archive is fetched again, a layer that the repository
// has is found there, an object that is gone from the bucket is none to remove. An audit line may come twice.
package receive
