"""The mistakes: what is changed where, what then goes wrong, and which tests must see it."""

from dataclasses import dataclass

WIRING = "tests/contract/test_wiring.py"
CORRUPTIONS = "tests/unit/robustness/test_corruptions.py"
COMPARISON = "tests/unit/evaluation/test_comparison.py"
EVALUATE = "tests/unit/evaluation/test_evaluate.py"
METRICS = "tests/unit/evaluation/test_metrics.py"
SIGNIFICANCE = "tests/unit/evaluation/test_significance.py"
TRAINER = "tests/unit/training/test_trainer.py"
TRAIN_TASK = "tests/unit/launch/test_train_task.py"
BATCH = "tests/unit/data/test_batch.py"
SPLITS = "tests/unit/data/test_splits.py"
CLAIM_LOOP = "tests/unit/launch/test_claim_loop.py::test_one_that_fails_takes_nobody_with_it"


@dataclass(frozen=True)
class Mutant:
    """One mistake: `old`, which stands in `file` exactly once, has become `new`."""

    name: str
    file: str  # below the package
    old: str
    new: str
    tests: tuple[str, ...]  # of its own area, files or file::test; one of them must fail
    wrong: str  # what a user would get

    @property
    def path(self) -> str:
        return f"fusionrun/{self.file}"

    def applied(self, text: str) -> str:
        """The file's `text` with the mistake. Raises ValueError where `old` isn't in it once."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.path} has its text {text.count(self.old)} times, expected once"
            )
        return text.replace(self.old, self.new)


WIRED = (
    Mutant(
        "alpha-ignored",
        "launch/trainers.py",
        "head_weights(len(experts), row.alpha, context.device)",
        "head_weights(len(experts), 1.0, context.device)",
        (WIRING,),
        "a row's alpha changes nothing",
    ),
    Mutant(
        "single-without-the-holdout",
        "launch/train_task.py",
        "images = splits.everything, splits.fusion_val",
        "images = splits.expert_train[0], splits.fusion_val",
        (WIRING,),
        "one network doesn't see all that experts and fusion see",
    ),
    Mutant(
        "detached-reports-fused",
        "evaluation/alternatives.py",
        '        "experts without fusion",\n        "control",\n        OTHER_HEADS,',
        '        "experts without fusion",\n        "control",\n        FIRST_HEAD,',
        (WIRING, COMPARISON),
        "the control without fusion is measured by its fused head",
    ),
    Mutant(
        "experts-last-epoch",
        "launch/train_task.py",
        "save_component(path, best.state, info)",
        "save_component(path, trainer.model.state_dict(), info)",
        (WIRING,),
        "experts are saved from their last epoch under the best one's name",
    ),
    Mutant(
        "experts-other-schedule",
        "launch/trainers.py",
        'Group.of("expert", [network], defaults.lr, optim.cosine_to_zero, HEAD_CLIP)',
        'Group.of("expert", [network], defaults.lr, optim.cosine_to_tenth, HEAD_CLIP)',
        (WIRING,),
        "experts' rate ends at a tenth and not at 0",
    ),
    Mutant(
        "experts-clip-x10",
        "study/defaults.py",
        "EXPERT_CLIP = 5.0",
        "EXPERT_CLIP = 50.0",
        (WIRING,),
        "experts in rows are hardly clipped",
    ),
    Mutant(
        "heads-clip-x10",
        "study/defaults.py",
        "HEAD_CLIP = 1.0",
        "HEAD_CLIP = 10.0",
        (WIRING,),
        "fusion, head and experts that train alone are hardly clipped",
    ),
    Mutant(
        "fusion-without-decay",
        "launch/trainers.py",
        "optimizer=optim.adamw(groups, defaults.weight_decay)",
        "optimizer=optim.adamw(groups, 0.0)",
        (WIRING,),
        "rows have no weight decay",
    ),
    Mutant(
        "experts-without-decay",
        "launch/trainers.py",
        "optimizer=optim.sgd(groups, defaults.weight_decay)",
        "optimizer=optim.sgd(groups, 0.0)",
        (WIRING,),
        "experts have no weight decay",
    ),
    Mutant(
        "fusion-without-smoothing",
        "launch/trainers.py",
        'label_smoothing=defaults.label_smoothing,\n        batch_field="fusion.batch_size"',
        'label_smoothing=0.0,\n        batch_field="fusion.batch_size"',
        (WIRING,),
        "rows have no label smoothing",
    ),
    Mutant(
        "experts-without-smoothing",
        "launch/trainers.py",
        'label_smoothing=defaults.label_smoothing,\n        batch_field="experts.batch_size"',
        'label_smoothing=0.0,\n        batch_field="experts.batch_size"',
        (WIRING,),
        "experts have no label smoothing",
    ),
    Mutant(
        "rows-with-experts-augmentation",
        "launch/trainers.py",
        "study.fusion_augmentation(row.fusion)",
        "study.expert_augmentation(row.architectures[0])",
        (WIRING,),
        "rows see their images as experts do, whatever their fusion type",
    ),
    Mutant(
        "densenet-without-dropout",
        "study/defaults.py",
        'ExpertDefaults(0.1, 1e-4, 64, "randaugment", 0.2, 0.05, 0.2)',
        'ExpertDefaults(0.1, 1e-4, 64, "randaugment", 0.2, 0.05, 0.0)',
        (WIRING,),
        "DenseNet experts train without dropout",
    ),
    Mutant(
        "experts-without-dropout",
        "launch/trainers.py",
        'dropout = {"dropout": defaults.dropout} if defaults.dropout else {}',
        "dropout: dict[str, float] = {}",
        (WIRING,),
        "all experts train without dropout",
    ),
    Mutant(
        "a-corruption-constant",
        "robustness/corruptions.py",
        "((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))",
        "((0.04,), (0.06,), (0.08,), (0.10,), (0.12,))",
        (CORRUPTIONS,),
        "Gaussian noise isn't that of the published table",
    ),
    Mutant(
        "validates-on-training-images",
        "launch/trainers.py",
        "context.loader(splits.fusion_val, context.evaluation_batch)",
        "context.loader(splits.fusion_train, context.evaluation_batch)",
        (WIRING,),
        "a row's best epoch is chosen on the images it learns from",
    ),
    Mutant(
        "trains-on-validation-images",
        "launch/trainers.py",
        "context.loader(splits.fusion_train, batch_size, augmentation)",
        "context.loader(splits.fusion_val, batch_size, augmentation)",
        (WIRING,),
        "a row learns from the images that select its best epoch",
    ),
)

TRAINING = (
    Mutant(
        "restarts-of-one-length",
        "training/optim.py",
        "period *= 2",
        "period *= 1",
        ("tests/unit/training/test_optim.py",),
        "the experts' rate restarts every quarter of the epochs, never later",
    ),
    Mutant(
        "no-momentum",
        "training/optim.py",
        "momentum=0.9",
        "momentum=0.0",
        ("tests/unit/training/test_optim.py",),
        "experts train without momentum",
    ),
    Mutant(
        "one-clip-for-all",
        "training/optim.py",
        "clip_grad_norm_(group.parameters, group.clip)",
        "clip_grad_norm_(group.parameters, groups[0].clip)",
        ("tests/unit/training/test_optim.py",),
        "fusion and head are clipped at the experts' limit",
    ),
    Mutant(
        "smoothing-not-spread",
        "training/losses.py",
        "targets = targets * (1 - smoothing) + smoothing / targets.shape[-1]",
        "targets = targets * (1 - smoothing)",
        ("tests/unit/training/test_losses.py",),
        "label smoothing weakens the loss and smoothes nothing",
    ),
    Mutant(
        "micro-batches-add-up",
        "training/step.py",
        "optimisation.label_smoothing) * share",
        "optimisation.label_smoothing)",
        (f"{TRAINER}::test_micro_batches_add_up_to_the_batch",),
        "with two micro-batches gradients and losses are twice as large",
    ),
    Mutant(
        "same-dropout",
        "training/trainer.py",
        'derive_seed(self.schedule.seed, "dropout", len(self.history), self._step)',
        'derive_seed(self.schedule.seed, "dropout", 0, 0)',
        (f"{TRAINER}::test_augmentation_and_dropout_differ_between_all_steps",),
        "dropout leaves out the same units in every step",
    ),
    Mutant(
        "same-order",
        "training/trainer.py",
        'derive_seed(self.schedule.seed, "order", epoch)',
        'derive_seed(self.schedule.seed, "order", 0)',
        (f"{TRAINER}::test_augmentation_and_dropout_differ_between_all_steps",),
        "every epoch has the same order and the same augmentation",
    ),
    Mutant(
        "frozen-norms-move",
        "training/trainer.py",
        "            module.eval()",
        "            module.train()",
        (f"{TRAINER}::test_frozen_experts_stay_as_they_are",),
        "frozen experts' batch statistics go on changing",
    ),
    Mutant(
        "best-is-the-last",
        "training/epoch.py",
        "self.state[name].copy_(value.detach(), non_blocking=True)",
        "self.state[name] = value.detach()",
        (f"{TRAINER}::test_best_weights_are_a_copy",),
        "the best epoch's weights go on learning after it",
    ),
    Mutant(
        "last-epoch-tested",
        "launch/train_task.py",
        "trainer.model.load_state_dict(best.state)",
        "trainer.model.state_dict()",
        (WIRING, TRAIN_TASK),
        "a row reports and saves its last epoch under the best one's name",
    ),
    Mutant(
        "gradient-not-finite",
        "training/guard.py",
        "ends = ~torch.isfinite(loss + norm)",
        "ends = ~torch.isfinite(loss)",
        (f"{TRAINER}::test_bad_numbers_stop_the_task_before_they_spread",),
        "a gradient of not-a-number is learned from",
    ),
    Mutant(
        "detached-learns",
        "fusions/model.py",
        "features = [each.detach() for each in features]",
        "features = list(features)",
        ("tests/unit/fusions/test_fusions.py",),
        "the control without fusion learns from the fusion",
    ),
    Mutant(
        "not-shifted",
        "fusions/multiplicative.py",
        "return normalised + 1.0",
        "return normalised + 0.0",
        ("tests/unit/fusions/test_fusions.py",),
        "multiplicativeShifted is multiplicative",
    ),
    Mutant(
        "annealed-half-way",
        "training/optim.py",
        "(epoch - first, epochs - first)",
        "(epoch - first, epochs)",
        ("tests/unit/training/test_optim.py",),
        "the annealed schedule ends far above a tenth of the rate",
    ),
    Mutant(
        "shared-draws-by-type",
        "study/study.py",
        "fusion = row.fusion if row.is_single else self._published(row.fusion)",
        "fusion = row.fusion",
        (
            "tests/unit/study/test_study.py",
            WIRING,
        ),
        "in a shared recipe fusion types see other batches",
    ),
    Mutant(
        "experts-of-one-seed",
        "launch/trainers.py",
        "seed = derive_seed(of_experts, task.model, k)",
        "seed = derive_seed(context.study.recipe.seed, task.model, k)",
        (TRAIN_TASK,),
        "experts of another seed are the same experts again",
    ),
    Mutant(
        "maps-that-shrink",
        "fusions/aligned.py",
        "self.weight.diagonal().fill_(1)",
        "self.weight.diagonal().fill_(0.5)",
        ("tests/unit/fusions/test_fusions.py",),
        "aligned fusions don't begin as those that they extend",
    ),
    Mutant(
        "gate-over-images",
        "fusions/gated.py",
        "return logits.softmax(dim=1)",
        "return logits.softmax(dim=0)",
        ("tests/unit/fusions/test_fusions.py",),
        "an image's weights depend on who else is in the batch",
    ),
    Mutant(
        "ties-to-the-worse",
        "training/epoch.py",
        "return self.val_accuracies[0], -self.val_losses[0]",
        "return self.val_accuracies[0], self.val_losses[0]",
        (f"{TRAINER}::test_validation_selects_the_best_epoch",),
        "of epochs that tie, that with the larger loss is kept",
    ),
    Mutant(
        "detached-selected-by-fused",
        "launch/trainers.py",
        "by_averaging=detached)",
        "by_averaging=False)",
        (WIRING,),
        "the control without fusion is saved at the epoch of its fused head",
    ),
    Mutant(
        "rates-swapped",
        "study/defaults.py",
        "experts, heads = experts * 0.7, heads * 0.8",
        "experts, heads = experts * 0.8, heads * 0.7",
        (WIRING, "tests/unit/study/test_study.py"),
        "experts with large features learn faster than published, heads slower",
    ),
)

SPLIT = (
    Mutant(
        "experts-see-the-holdout",
        "data/splits.py",
        "pool = np.setdiff1d(np.arange(len(labels)), holdout, assume_unique=True)",
        "pool = np.arange(len(labels))",
        (SPLITS,),
        "experts train on what their fusion trains on and is selected by",
    ),
    Mutant(
        "fusion-sees-validation",
        "data/splits.py",
        "fusion_train = np.setdiff1d(holdout, fusion_val, assume_unique=True)",
        "fusion_train = holdout",
        (SPLITS,),
        "rows train on the images that select their best epoch",
    ),
    Mutant(
        "own-parts-are-one",
        "data/splits.py",
        "own[k * unique : (k + 1) * unique]",
        "own[:unique]",
        (SPLITS,),
        "all experts see the same images",
    ),
    Mutant(
        "last-classes-lost",
        "data/splits.py",
        "return range(first, first + least + (k < more))",
        "return range(first, first + least)",
        (SPLITS,),
        "classes that don't divide evenly have no expert",
    ),
    Mutant(
        "shared-part-is-everything",
        "data/splits.py",
        "shared = round(rules.shared_fraction * len(pool))",
        "shared = round(rules.holdout_fraction * len(pool))",
        (SPLITS,),
        "experts share another part than the recipe says",
    ),
    Mutant(
        "subset-without-classes",
        "data/datasets/subset.py",
        'chosen = order[np.argsort(turns[order], kind="stable")][:count]',
        "chosen = order[:count]",
        ("tests/unit/data/test_subset.py",),
        "a part of a data set has classes in other shares",
    ),
)

AUGMENTATION = (
    Mutant(
        "weight-of-the-uncut-box",
        "data/augmentation/policies.py",
        "weight = 1 - (bottom - top) * (right - left) / (height * width)",
        "weight = 1 - rows * columns / (height * width)",
        (BATCH,),
        "CutMix gives labels for pixels that aren't in the image",
    ),
    Mutant(
        "partners-of-the-first-step",
        "data/augmentation/policies.py",
        "partner = draws.each(lambda rng, count: rng.permutation(count)) + draws.first",
        "partner = draws.each(lambda rng, count: rng.permutation(count))",
        (BATCH, "tests/unit/data/test_loader.py"),
        "batches made ahead are mixed with the images of another one",
    ),
    Mutant(
        "always-erased",
        "data/augmentation/policies.py",
        "(draws.random() < probability)",
        "(draws.random() < 1.0)",
        (BATCH,),
        "every image has a hole",
    ),
    Mutant(
        "labels-not-mixed",
        "data/augmentation/batch.py",
        "return images, targets * weight + targets.index_select(0, partner) * (1 - weight)",
        "return images, targets",
        (BATCH,),
        "mixed images keep the label of the one below",
    ),
    Mutant(
        "unsigned-operations",
        "data/augmentation/policies.py",
        "signs = np.where(draws.random() < 0.5, -1.0, 1.0)",
        "signs = np.where(draws.random() < 0.5, 1.0, 1.0)",
        (BATCH,),
        "RandAugment turns and shifts to one side alone",
    ),
    Mutant(
        "order-of-the-files",
        "data/loader.py",
        "self._to_device(np.random.default_rng(seed).permutation(self._indices))",
        "self._to_device(self._indices)",
        ("tests/unit/data/test_loader.py",),
        "training reads the images in the data set's order",
    ),
)

RESUME = (
    Mutant(
        "moments-lost",
        "training/optim.py",
        "optimizer.load_state_dict(state)",
        'optimizer.load_state_dict({**state, "state": {}})',
        (TRAINER,),
        "a resumed run begins with new momenta",
    ),
    Mutant(
        "epoch-again",
        "training/trainer.py",
        "training_batches(order, start_step=self._step)",
        "training_batches(order, start_step=0)",
        (TRAINER,),
        "a resumed run repeats the steps of its epoch",
    ),
    Mutant(
        "best-forgotten",
        "training/trainer.py",
        'self.best = BestEpoch(**state["best"])',
        "self.best = BestEpoch()",
        (TRAINER,),
        "the best epoch before a stop is lost",
    ),
    Mutant(
        "meter-forgotten",
        "training/trainer.py",
        'self.step.meter.restore(state["meter"])',
        "self.step.meter.begin_epoch()",
        (TRAINER,),
        "the losses of an epoch with a stop in it are those of its end",
    ),
    Mutant(
        "damage-takes-its-place",
        "training/checkpoint.py",
        "if self.path.exists() and not self._damaged:",
        "if self.path.exists():",
        ("tests/unit/training/test_checkpoint.py", TRAINER),
        "a damaged state replaces the whole one before it",
    ),
    Mutant(
        "absent-is-equal",
        "training/identity.py",
        "for name in sorted({*here, *there})",
        "for name in sorted({*here} & {*there})",
        ("tests/unit/training/test_identity.py",),
        "a setting that one side leaves at its default isn't compared",
    ),
    Mutant(
        "experts-of-another-recipe",
        "components/starting_experts.py",
        "    if may_differ:\n",
        "    if identity:\n",
        ("tests/unit/launch/test_resume.py",),
        "rows start from experts of another recipe, and nobody says so",
    ),
    Mutant(
        "any-result-is-ours",
        "launch/resume.py",
        "    study.identity(task).require_same(manifest, _of_manifest(read_manifest(manifest)))\n"
        "    return True",
        "    return True",
        ("tests/unit/launch/test_resume.py",),
        "a row of other settings is taken for this study's",
    ),
)

EVALUATION = (
    Mutant(
        "best-expert-by-test",
        "evaluation/comparison.py",
        "self.val_accuracies.index(max(self.val_accuracies))",
        "self.accuracies.index(max(self.accuracies))",
        (COMPARISON, EVALUATE),
        "the best expert is chosen on the test set",
    ),
    Mutant(
        "weights-by-test",
        "evaluation/comparison.py",
        "validation = predictions.validation\n",
        "validation = predictions.test\n",
        (COMPARISON, EVALUATE),
        "the weights of the weighted mean are fitted on the test set",
    ),
    Mutant(
        "temperature-by-test",
        "evaluation/answers.py",
        "fit_temperature(answers.validation(), predictions.validation.labels)",
        "fit_temperature(answers.test(), predictions.test.labels)",
        (COMPARISON, EVALUATE),
        "calibration is fitted on the test set",
    ),
    Mutant(
        "worst-alternative",
        "evaluation/answers.py",
        "return max(alternatives, key=rank)",
        "return min(alternatives, key=rank)",
        (COMPARISON, EVALUATE),
        "fused is compared with the worst alternative as if it were the best",
    ),
    Mutant(
        "experts-after-for-before",
        "evaluation/predictions.py",
        "            return self.before\n",
        "            return self.logits[:, 1:]\n",
        (COMPARISON, EVALUATE),
        "what experts answered before fusion training is what they answer after it",
    ),
    Mutant(
        "trains-while-it-answers",
        "evaluation/predictions.py",
        "    model.eval()\n",
        "    model.train()\n",
        (EVALUATE,),
        "dropout and batch statistics change the answers that are measured",
    ),
    Mutant(
        "anybodys-answers",
        "evaluation/predictions.py",
        "zip(Origin._fields, found.origin, origin, strict=True)",
        "zip(Origin._fields[1:], found.origin[1:], origin[1:], strict=True)",
        (EVALUATE,),
        "saved answers of other weights are measured as this row's",
    ),
    Mutant(
        "controls-of-other-seeds",
        "evaluation/row_names.py",
        "(self.model, self.seed) != (row.model, row.seed)",
        "self.model != row.model",
        ("tests/unit/evaluation/test_schema.py",),
        "a row is compared with the control of another seed",
    ),
    Mutant(
        "geometric-mean",
        "training/scores.py",
        "return each.logsumexp(dim=1) - math.log(experts)",
        "return each.mean(dim=1).log_softmax(dim=-1)",
        ("tests/unit/training/test_scores.py",),
        "the mean of probabilities is that of log-probabilities",
    ),
    Mutant(
        "stacking-by-heart",
        "evaluation/statistics/stacking.py",
        "seen = fold != k",
        "seen = fold != FOLDS",
        ("tests/unit/evaluation/test_stacking.py",),
        "stacking is chosen by what it answers on the images that it was fitted on",
    ),
    Mutant(
        "heads-in-half-precision",
        "common/image_classifier.py",
        "torch.set_autocast_enabled(device, False)",
        "torch.set_autocast_enabled(device, True)",
        ("tests/unit/common/test_image_classifier.py",),
        "under bfloat16 classes tie that differ in the fourth digit",
    ),
    Mutant(
        "corruption-of-another-severity",
        "robustness/corruptions.py",
        "constants = CONSTANTS[name][severity - 1]",
        "constants = CONSTANTS[name][severity - 2]",
        (CORRUPTIONS,),
        "corruptions are those of the severity before",
    ),
    Mutant(
        "ties-lose",
        "robustness/ood_metrics.py",
        "(2 * below + ood_at)",
        "(2 * below)",
        ("tests/unit/robustness/test_ood_metrics.py",),
        "equal scores count as wrong in the AUROC",
    ),
)

STATISTICS = (
    Mutant(
        "one-sided",
        "evaluation/statistics/significance.py",
        "return min(1.0, 2 * outcomes / (1 << tosses))",
        "return min(1.0, outcomes / (1 << tosses))",
        (SIGNIFICANCE,),
        "p-values are half of what they are",
    ),
    Mutant(
        "narrow-interval",
        "evaluation/statistics/significance.py",
        "tail = (1 - confidence) / 2",
        "tail = 1 - confidence",
        (SIGNIFICANCE,),
        "the 95 % interval covers 90 %",
    ),
    Mutant(
        "not-corrected",
        "evaluation/many_comparisons.py",
        "(len(p_values) - step) * p_values[index]",
        "p_values[index]",
        ("tests/unit/evaluation/test_many_comparisons.py",),
        "of many comparisons some win by luck, and are said to",
    ),
    Mutant(
        "corrected-out-of-order",
        "evaluation/many_comparisons.py",
        "least = max(least, min(",
        "least = max(0.0, min(",
        ("tests/unit/evaluation/test_many_comparisons.py",),
        "a larger p-value can be corrected to a smaller one than the one before",
    ),
    Mutant(
        "deviation-of-all-seeds",
        "evaluation/statistics/seeds.py",
        "statistics.stdev(values)",
        "statistics.pstdev(values)",
        ("tests/unit/evaluation/test_results.py", "tests/unit/evaluation/test_comparison.py"),
        "the spread over few seeds is too small",
    ),
    Mutant(
        "calibration-error-of-bins",
        "evaluation/statistics/metrics.py",
        "level.samples * abs(level.accuracy - level.confidence)",
        "level.samples * (level.accuracy - level.confidence)",
        (METRICS,),
        "too sure here and too unsure there add up to well calibrated",
    ),
    Mutant(
        "ties-for-all",
        "evaluation/statistics/metrics.py",
        "ahead = (scores > own) | ((scores == own) & earlier)",
        "ahead = scores > own",
        (METRICS,),
        "equal scores of several classes are all right",
    ),
)

LAUNCH = (
    Mutant(
        "claimed-twice",
        "study/queue.py",
        'if int(self.store.add(f"claim/{task.name}", 1)) == 1:',
        'if int(self.store.add(f"claim/{task.name}", 1)) >= 1:',
        ("tests/unit/study/test_queue.py::test_one_claim_wins_where_all_saw_the_task_open",),
        "two ranks train the same row into the same files",
    ),
    Mutant(
        "claimed-twice-beside",
        "study/queue.py",
        'if int(self.store.add(f"claim/{other.name}", 1)) == 1:',
        'if int(self.store.add(f"claim/{other.name}", 1)) >= 1:',
        ("tests/unit/study/test_queue.py::test_one_claim_wins_where_all_saw_the_task_open",),
        "two ranks train the same expert beside others",
    ),
    Mutant(
        "row-before-its-experts",
        "study/queue.py",
        "any(self.outcome(need) is None for need in task.needs):",
        "any(self.outcome(need) is None for need in task.needs[:0]):",
        ("tests/unit/study/test_queue.py",),
        "a row starts while its experts still train",
    ),
    Mutant(
        "failed-expert-forgiven",
        "launch/claim_loop.py",
        'if self.queue.outcome(need) != "done":',
        "if self.queue.outcome(need) is None:",
        (CLAIM_LOOP,),
        "a row whose expert failed starts all the same",
    ),
    Mutant(
        "failure-is-success",
        "launch/shutdown.py",
        'if all(outcome == "done" for outcome in outcomes):',
        "if all(outcomes):",
        ("tests/unit/launch/test_shutdown.py::test_one_row_that_failed_fails_the_launch",),
        "a launch with a failed row ends with exit status 0",
    ),
)

MUTANTS = (
    *WIRED,
    *TRAINING,
    *SPLIT,
    *AUGMENTATION,
    *RESUME,
    *EVALUATION,
    *STATISTICS,
    *LAUNCH,
)
