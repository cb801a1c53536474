"""The control plane, its agents and its network in one thread under virtual time.

The product's own code runs, from the agent's loop to the writer's group commit. What is made up is
what it stands on: the clock (`clock`), nats-server (`server`), the log's store (`store`), the disk
and the training of agents (`agents`), and the people who enqueue (`people`). `world` draws the
faults, `checker` holds the log against what everybody was told.
"""
