package simulator

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func actions(seed uint64, n int) []Action {
	p := NewPlan(seed, 20, 50)
	var all []Action
	for i := range n {
		all = append(all, p.Next(i))
	}
	return all
}

func TestTheSeedDecidesEverything(t *testing.T) {
	t.Parallel()
	require.Equal(t, actions(7, 2000), actions(7, 2000))
	require.NotEqual(t, actions(7, 2000), actions(8, 2000))
}

func TestThePlanMakesSense(t *testing.T) {
	t.Parallel()
	seen := map[Kind]int{}
	placed, fulfilled := map[int]int{}, map[int]bool{}
	var pauses time.Duration
	all := actions(7, 5000)
	for n, a := range all {
		seen[a.Kind]++
		pauses += a.After
		switch a.Kind {
		case Register:
			require.Equal(t, seen[Register]-1, a.Customer)
			require.NoError(t, a.New.Validate())
		case Order:
			require.Equal(t, seen[Order]-1, a.Order)
			require.Less(t, a.Customer, seen[Register])
			require.NotEmpty(t, a.Basket)
			placed[a.Order] = n
		case Change:
			require.Less(t, a.Customer, seen[Register])
		default:
			require.Contains(t, placed, a.Order, "%s of an order that was never placed", a.Kind)
			if a.Kind == Refund {
				require.True(t, fulfilled[a.Order])
			}
			fulfilled[a.Order] = fulfilled[a.Order] || a.Kind == Fulfil
		}
	}
	require.Equal(t, 20, seen[Register])
	for _, k := range Kinds {
		require.NotZero(t, seen[k], k)
	}
	// The mean pause of 5,000 is within 5 % of 1/rate, as good as always.
	mean := pauses.Seconds() / float64(len(all))
	require.Less(t, math.Abs(mean-1.0/50), 0.05/50)
}
