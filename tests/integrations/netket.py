"""Finds the ground state of a chain of spins with NetKet's `VMC`, and real and complex weights."""


def main():
    """Compares the energy with the exact one, which NetKet computes for a chain this short."""
    import netket as nk
    import optax

    from optax_lamblion import adamw8bit
    from tests.integrations.report import conclude

    hilbert = nk.hilbert.Spin(s=0.5, N=8)
    hamiltonian = nk.operator.IsingJax(hilbert=hilbert, graph=nk.graph.Chain(8), h=1.0)
    exact = float(nk.exact.lanczos_ed(hamiltonian)[0])
    sampler = nk.sampler.MetropolisLocal(hilbert, n_chains=16)
    tx = adamw8bit(3e-3, weight_decay=0.0)
    for dtype, optimizer in [
        (float, tx),
        (complex, optax.contrib.split_real_and_imaginary(tx)),
    ]:
        # 8 spins and 512 hidden units: the kernel has the 4096 elements that 8 bits begin with.
        model = nk.models.RBM(alpha=64, param_dtype=dtype)
        state = nk.vqs.MCState(sampler, model, n_samples=512, seed=0)
        driver = nk.driver.VMC(hamiltonian, optimizer, variational_state=state)
        first = state.expect(hamiltonian).mean.real
        driver.run(100, show_progress=False)
        last = state.expect(hamiltonian)
        # A sampled energy: five of its standard errors, and 1 % that 100 steps leave.
        error = float(last.error_of_mean)
        assert abs(last.mean.real - exact) < 5 * error + 0.01 * abs(exact), (last, exact)
        conclude(f"NetKet, {dtype.__name__}", first, last.mean.real, driver._optimizer_state)


if __name__ == "__main__":
    main()
