package snapshotter

import "context"

// CompleteBlobs downloads what is missing and can be had, once.
func (s *Snapshotter) CompleteBlobs(ctx context.Context) { s.completeBlobs(ctx) }
