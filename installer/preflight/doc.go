// Package preflight judges a host: whether its engine can run on the plugin, and what will happen if it is made to.
//
// The words used here:
//
//   - Facts are what was found on a host. [Gather] collects them: it alone reads, asks and tries, every step of it in
//     bounded time, and it changes nothing. What couldn't be found out is a fact, too. Facts hold no password.
//   - A plan is what the facts are judged for: an installation, or the host as it stands.
//   - A finding is what a fact means for the plan, with its remedy. [Judge] makes all of them at once, of facts and
//     plan alone.
//
// A host with a finding of severity [Error] doesn't qualify; programs then exit with program.Unfit.
package preflight
