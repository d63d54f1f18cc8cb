package store_test

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"outflow/domain"
	"outflow/internal/pgtest"
	"outflow/store"
)

// The tables are empty when a benchmark starts and are never analyzed, as on
// somebody's first day: a plan that was made then must still do later.
func BenchmarkStore(b *testing.B) {
	for _, bench := range []struct {
		name string
		do   func(s *store.Store, b *testing.B, n int64, ids *[]domain.ID) error
	}{
		{"create", func(s *store.Store, b *testing.B, n int64, _ *[]domain.ID) error {
			_, err := s.CreateCustomer(b.Context(), named(fmt.Sprint("b", n)), by)
			return err
		}},
		{"update", func(s *store.Store, b *testing.B, n int64, ids *[]domain.ID) error {
			_, err := s.UpdateCustomer(b.Context(), (*ids)[rand.IntN(len(*ids))], store.Precondition{}, rename(fmt.Sprint(n)), by)
			return err
		}},
		{"place", func(s *store.Store, b *testing.B, n int64, ids *[]domain.ID) error {
			_, err := s.PlaceOrder(b.Context(), tea((*ids)[rand.IntN(len(*ids))]), by)
			return err
		}},
		{"place, decide, cancel", func(s *store.Store, b *testing.B, n int64, ids *[]domain.ID) error {
			o, err := s.PlaceOrder(b.Context(), tea((*ids)[rand.IntN(len(*ids))]), by)
			if err != nil {
				return err
			}
			if err := s.DecideOrders(b.Context(), []domain.ID{o.ID}, func(domain.ID) domain.Metadata { return by })[0]; err != nil {
				return err
			}
			_, err = s.CancelOrder(b.Context(), o.ID, store.Precondition{}, by)
			return err
		}},
		{"read", func(s *store.Store, b *testing.B, n int64, ids *[]domain.ID) error {
			_, err := s.Customer(b.Context(), (*ids)[rand.IntN(len(*ids))])
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			pool, err := store.Open(b.Context(), pgtest.New(b).URL, 16)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(pool.Close)
			s := store.New(pool, store.Config{})
			run(b, s)
			var ids []domain.ID
			for i := range 5000 {
				c, err := s.CreateCustomer(b.Context(), named(fmt.Sprint("c", i)), by)
				if err != nil {
					b.Fatal(err)
				}
				ids = append(ids, c.ID)
			}
			var n atomic.Int64
			b.SetParallelism(16)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bench.do(s, b, n.Add(1), &ids); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}
