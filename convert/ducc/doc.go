// Package ducc speaks to the surroundings of the DUCC tool, so that a site can put docker2cvmfs in its place.
//
// The words used here:
//
//   - Credentials are read from the environment: DUCC_AUTH_REGISTRIES names registries by ids, and DUCC_<id>_IDENT,
//     _USER, _PASS and _PROXY describe each; DUCC_OUTPUT_REGISTRY_PASS is the password of a wish list's user.
//   - Notifications are lines of JSON in a file that other programs follow.
package ducc
