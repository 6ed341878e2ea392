// Package supervise is process 1 of the plugin: it holds what must outlive a crash of the server, and starts the server
// anew.
//
// The words used here:
//
//   - The supervisor is this small process. It does nothing that could fail for want of network, disk or memory.
//   - The server is its child, the same program with another argument, which does all the work. When it dies, running
//     containers and the engine notice no more than a pause.
//   - The inheritance is what each server gets: the plugin's listening socket (connections made meanwhile wait in its
//     queue), the device of the FUSE mount (so that the mount lives on), and, where the kernel can't resend requests,
//     the journal in which they lie until they are answered.
//   - The store is the service manager's, where there is one that keeps descriptors (systemd's FileDescriptorStoreMax):
//     what it keeps outlives the supervisor, too, and the next one goes on with it. An upgrade is a restart.
//   - A generation is one FUSE mount: the life of a supervisor, and of those that go on with what was kept. What was
//     mounted on top of the FUSE mount of another generation can fetch nothing any more.
//
// The program's main function calls it like this:
//
//	if len(os.Args) > 1 && os.Args[1] == "serve" {
//		in, err := supervise.Inherited()
//		…                                       // open stores, compose what is needed: requests wait meanwhile
//		go fusewire.Serve(in.Fuse, node.Tree(), fusewire.Config{Init: in.Init, Journal: in.Journal, Log: log})
//		http.Serve(in.Listener, …)              // ends with the process, on SIGTERM
//	}
//	err := supervise.Run(ctx, supervise.Config{Socket: "/run/docker/plugins/plugin.sock", FuseDir: "/run/cvmfs/fuse",
//		Args: []string{"serve"}, Log: log})
//
// The server need not close or unmount anything of its inheritance; on SIGTERM it has Config.Grace to end. Nothing in
// FuseDir may be touched by the server before it serves: the call would wait for itself.
package supervise
