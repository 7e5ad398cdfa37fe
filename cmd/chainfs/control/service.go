package control

import (
	"context"

	"github.com/chainfs/chainfs/chain"
)

// Service is what can be asked of a tree. A Client asks the daemon; without a
// daemon the command answers itself, from the tree alone.
type Service interface {
	Tree(ctx context.Context, p chain.Path) ([]chain.Info, error)
	Info(ctx context.Context, p chain.Path) (Description, error)
	Why(ctx context.Context, p chain.Path) (Verdict, error)
	Plan(ctx context.Context, req RemoveRequest) (chain.Plan, error)
	Remove(ctx context.Context, req RemoveRequest, report func(chain.Progress)) (Result, error)
	Rebase(ctx context.Context, req RebaseRequest, report func(chain.Progress)) (Result, error)
	Scan(ctx context.Context) (chain.Report, error)
	Operations(ctx context.Context) (Operations, error)
	Check(ctx context.Context) ([]chain.Finding, error)
	CheckImages(ctx context.Context, req CheckImagesRequest, report func(chain.Progress)) (Result, error)
}
