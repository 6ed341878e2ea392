package layers

// FailSync has records that are replaced not reach the disk, with an error; nil has them reach it again.
func (s *Store) FailSync(err error) { s.sync = func(string) error { return err } }
