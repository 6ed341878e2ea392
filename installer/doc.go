// Package installer makes the plugin a host's storage driver, and takes it back, without ever leaving the host broken.
//
// The words used here:
//
//   - A step is what a user sees: it has a name and an outcome. A step that finds all as it should be changes nothing.
//   - A change is what a step does to the host: a folder, a mode, something of the plugin's, the engine's configuration
//     file, a drop-in of its service. Before a change is begun, what it is and what undoing it takes are in the record,
//     on disk.
//   - The record is a file. It holds the changes that the last install made, from which an uninstall goes back, and
//     those of a run that isn't through, a transaction. One run at a time has the record.
//   - To undo is to take a transaction's changes back, whether they were done, half done or only intended. A run whose
//     step fails undoes its changes; a run that was killed is undone by the next one, which then goes on with what it
//     was asked for.
//   - To rescue is to start an engine whose storage driver keeps it from starting with another one, for the time of
//     undoing.
//
// The order of undoing follows from what an engine can do: first the files that it reads when it starts, then a
// restart, and with the engine running as before what was changed of the plugin, from the last change to the first. A
// plugin that was upgraded while it is the storage driver takes one more restart at the end.
package installer
