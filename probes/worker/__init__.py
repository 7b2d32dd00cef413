"""The probe's child process: runs a model's load for real or on fake tensors and says what memory it takes.

The package stands alone: standard library, torch, transformers and (for adapters) peft. It imports nothing
else of this project and only uses relative imports, so that it can be zipped and run on another machine.
``python -m probes.worker`` starts it; ``worker.main.main()`` is the same from a bootstrap script.

The wire
========
One JSON object on one line of standard input, the **order**. Then **events**, one JSON object a line, on standard
output. Nothing else reaches standard output: the descriptor is taken away first and ``print`` goes to standard
error, where the logs are. All sizes are bytes, all times are ``time.monotonic()`` seconds of this process.

Order
-----
``version``            1
``mode``               ``"measure"`` (real tensors) or ``"rehearse"`` (fake tensors, CPU only, no weights); ``"ramp"``,
                       ``"calibrate"`` and ``"script"`` need no scenario (:mod:`probes.worker.loads`)
``scenario``           the scenario; ``task``, ``weights``, ``inference`` or ``training`` are read, ``hardware.gpu`` and
                       ``parallel`` only to say what is not covered. Missing keys take the defaults of the design.
``config``             the model's ``config.json`` as an object
``device``             ``"cpu"`` or ``"cuda:N"`` (ROCm's torch calls AMD's cards so too), ``"xpu:N"`` or ``"mps"``
``snapshot``           measure only: true sends the allocator's segments after the run, default false
``layers``             ``null``, or keep only this many decoder (and encoder) layers
``budget_bytes``       ``null``, or the most this run may allocate. Beyond it the run ends as out-of-memory
``meters``             true: send ``environment`` and ``sample`` too (:mod:`probes.worker.outside`), because nobody on this
                       machine reads them; default false. Then a CPU run without a budget leaves a tenth of what is free
``ranks``              measure only: so many processes under ``torchrun``, default 1; rank r takes the device ``cuda:N+r``.
                       ``scenario.parallel`` says how they share the work (:mod:`probes.worker.distributed`)
``sample_interval_s``  seconds between ``memory`` events, default 0.05
``personality``        rehearse only: ``"cuda"`` (default) traces what a CUDA device allocates, ``"cpu"`` what the CPU
                       does. With ``"cpu"`` the trace equals a measurement on CPU to the byte
``compute_capability`` rehearse only: ``[major, minor]`` of the card that is played, default ``[8, 0]``
``decode_steps``       rehearse only: ``"auto"`` (default: equal steps are traced once, proved periodic and unrolled) or
                       ``"all"`` (every step is traced)
``stored_as``          what ``native`` weights are stored in (``"fp8-block"``), when the checkpoint is quantised
``traced_layers``      rehearse only: ``"auto"`` (default: of repeated layers a few are traced, the others written from them
                       and confirmed) or ``"all"`` (every layer is traced)

Keys the worker reads inside the scenario beyond the common ones, with their defaults: ``inference.engine_options`` =
``{"cache_implementation": "dynamic"`` (``static``, ``quantized``)``, "cache_backend": "quanto"`` (``hqq``, ``fp8``)``,
"cache_nbits": 4, "cache_q_group_size": 64, "cache_residual_length": 128}``; ``training.engine_options`` =
``{"use_reentrant": false, "max_grad_norm": null, "checkpoint_every": 2, "autocast_adapter_dtype": true,
"prepare_for_kbit_training": false, "quant_skip_modules": "", "chunk_tokens": 1024, "projection_rank": 128}``;
``training.lora.alpha`` (twice the rank), ``dropout`` (0) and ``rslora`` (false); ``training.trainable`` (names of the modules
that method ``freeze`` trains; none: the head) and ``training.virtual_tokens`` (20, methods ``prompt`` and ``prefix``);
``training.objective`` (``sft``, ``dpo`` or ``grpo``) with ``reference``, ``prompt_tokens`` (half of the sequence) and ``rollout``.

Events
------
Every event has ``event`` (its name) and ``t``.

``hello``     ``protocol`` 1, ``pid``, ``rank``, ``world``, ``versions`` {python, torch, transformers, peft|null,
              cuda|null}, ``device`` {type, name, index|null, total_bytes, capability|null}, on a CUDA device also
              ``uuid`` and ``pci_bus_id`` (null when torch does not tell), by which the driver's figures are its.
              The first event, except that ``progress`` ("importing") may come before it.
``progress``  ``what``, ``done``, ``total`` (``total`` may be null). ``what``: importing, building, prefill, decode, step.
``phase``     ``name`` (load, prefill, decode, generation, reference, forward, backward, optimizer), ``state`` (begin, end),
              ``step`` (0 for load, prefill and decode; training 1 or 2), ``micro`` (0 … gradient_accumulation − 1).
              At the end also ``allocated``, ``reserved``, ``device`` (highest value during the phase) and
              ``components`` {component: bytes at the moment of the allocated peak} (null when not known). On a CUDA
              measurement they are walked: what is held (weights, gradients, optimizer state, cache), and as activations or
              workspace the rest of the peak.
``memory``    ``allocated``, ``reserved``, ``device``, ``free``, ``total``, ``phase``. Sampled. On CPU ``allocated`` is the
              tracker's figure (live storages, each rounded up to 512 bytes), ``reserved`` equals it, ``device`` is the
              growth of the process's resident memory since before the model was built, ``free`` and ``total`` are
              the machine's. Not sent by a rehearsal.
``storage``   rehearse only. ``strings``: strings that are new in this event, appended to a table the reader keeps (index =
              order of arrival, starting at 0). ``batch``: a list of
              ``["a", id, bytes, component, module, op]``  an allocation. ``bytes`` as requested, not rounded;
              ``["f", id]``                                the storage died;
              ``["c", id, component]``                     the storage's part became clear (same bytes);
              ``["p", phase, "begin"|"end", step]``        a phase boundary.
              ``component``, ``module``, ``op`` and ``phase`` are indices into the table. Ids are never used twice.
              Order is the program's order. ``module`` is the module path ("" = the model itself), ``op`` the
              operator's name without its namespace.
              A personality's scratch (allocated and freed inside one operator) is an "a" followed by an "f".
``result``    ``outcome`` (completed, out_of_memory), ``parameters``, ``trainable_parameters``, ``weight_bytes``, ``layers``
              (decoder layers built), ``phases`` [{name, step, allocated, reserved, device, components}] (the maximum
              over micro-batches), ``notes`` [text]. With out_of_memory also ``requested_bytes``, ``free_bytes`` (each may
              be null), ``message`` and ``phase``. ``model_class``, ``attention`` (the implementation used).
``snapshot``  ``segments`` [{total, allocated, kind (small, large), blocks [[size, state]]}], on CUDA, before the result.
``rank``      ``rank`` (1 and more) and ``of``: what another rank said, an event as above. What rank 0 says comes bare. The
              ``result`` then has ``ranks`` [{rank, phases}], and ``rank``: whose it is.
``error``     ``kind``, ``message`` (with the remedy), ``field`` (path of the faulty value, or null). Kinds: bad_order,
              bad_config (exit 2); missing_package, unsupported, no_device, internal (exit 3); interrupted (exit 130);
              of several ranks also rank_ended (exit 3): one ended without a word, ``rank`` and, if known, ``signal``.

Exit status: 0 a result was sent (out of memory included), 2 bad input, 3 cannot be done here, 130 interrupted.

Life and death
--------------
SIGINT and SIGTERM end the run with an ``error`` of kind ``interrupted``. If the parent goes away (its process id changes, or
the pipe is closed) the worker ends at once. Standard input is read for one line only and may be closed after it.

Where the package is not installed, ``python3 -c`` with :data:`probes.worker.landing.START` reads it from standard input
(:mod:`probes.worker.parcel`), then the order. Such a worker ends when its standard input does, or says nothing for 30 s.
"""
