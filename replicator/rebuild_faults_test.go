package replicator

import (
	"testing"

	"github.com/stretchr/testify/require"

	"outflow/internal/mongofake"
)

// A server that changes its primary at the swap answers with an error once. The
// rebuild tries again, as it does before: no worker may be there to complete it.
func TestTheSwapIsTriedAgain(t *testing.T) {
	for _, command := range []string{"renameCollection", "update"} {
		t.Run(command, func(t *testing.T) {
			s := newSystem(t)
			s.needFake()
			s.Publish(t, customer(1, 1))
			f := mongofake.Fault{Command: command, Count: 1, Code: 50, Message: "time limit exceeded"}
			if command == "update" {
				f.Collection, f.Skip = "_positions", 1 // the first one pauses the workers
			}
			fault := s.fake.Fault(f)
			_, err := s.rebuild(customers)
			require.NoError(t, err)
			require.Equal(t, 1, fault.Hits())
			require.Equal(t, int64(1), s.version("_customers", id(1)))
			s.clean()
		})
	}
}
