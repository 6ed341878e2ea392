// Package doctor says on one screen how a host is, and packs what a supporter wants to see of it.
//
// A report is facts and findings of package preflight. An archive is a report with the files it was made from, for
// people who can't look at the host themselves. No secret leaves the host with it: passwords in addresses, keys of
// object stores, credentials of registries, tokens and private keys are replaced by the word "(removed)". They are
// found where they are kept, and then removed everywhere, the engine's log included; see [Redactor].
package doctor
